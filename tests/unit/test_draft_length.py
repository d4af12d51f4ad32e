"""The controller of K against machines whose times are known."""

import itertools

import numpy as np
import pytest

from layerskip_vllm.scheduling.draft_length import (
    MIN_GAIN,
    DraftLengthController,
    DraftOutcomes,
    RowTimes,
)

MAX_DRAFTS = 8


def test_times_are_recent_and_leave_disturbances_out():
    times = RowTimes()
    for seconds in (0.1, 0.1, 0.1, 5, 1, 2, 3, 50, 60, 4, 70):
        times.observe(4, seconds)
    assert times.estimate(4) == 3


def test_what_was_not_measured_is_taken_to_cost_little():
    times = RowTimes()
    times.observe(4, 2)
    times.observe(8, 4)
    assert [times.estimate(rows) for rows in (4, 5, 6, 8)] == [2, 2, 2, 4]
    assert [times.estimate(rows) for rows in (16, 64)] == [8, 32]  # as from 4 to 8
    assert [times.estimate(rows) for rows in (1, 2)] == [0.5, 1]


def test_outcomes_start_from_a_prior_and_follow_a_change():
    outcomes = DraftOutcomes()
    assert outcomes.match_rate == pytest.approx(0.7)
    for _ in range(200):
        outcomes.observe(np.ones(4, bool))
        outcomes.observe(np.ones(0, bool))
    assert outcomes.match_rate > 0.99
    assert outcomes.all_matched
    for _ in range(60):
        outcomes.observe(np.zeros(4, bool))
    assert outcomes.match_rate < 0.4
    assert not outcomes.all_matched


class Machine:
    """Times and acceptance that do not change; runs the controller as the runner does."""

    def __init__(self, draft_seconds, verify_seconds, match_rate, seed=0):
        self.draft_seconds, self.verify_seconds = draft_seconds, verify_seconds
        self.match_rate = match_rate
        self.random = np.random.default_rng(seed)
        self.seconds = self.num_tokens = 0.0

    def rate(self, batch_size, k):
        """Tokens per second of a fixed K, exactly."""
        tokens = batch_size * (self.match_rate ** np.arange(k + 1)).sum()
        rows = batch_size * (k + 1)
        return tokens / (k * self.draft_seconds(batch_size) + self.verify_seconds(rows))

    def run(self, controller, batch_size, num_steps):
        chosen = []
        for _ in range(num_steps):
            k = controller.choose(np.full(batch_size, MAX_DRAFTS))
            chosen.append(k)
            if k:
                seconds = self.noisy(self.draft_seconds(batch_size))
                controller.draft_seconds.observe(batch_size, seconds)
                self.seconds += k * seconds
            rows = batch_size * (k + 1)
            seconds = self.noisy(self.verify_seconds(rows))
            controller.verify_seconds.observe(rows, seconds)
            self.seconds += seconds
            is_match = self.random.random((batch_size, k)) < self.match_rate
            is_accepted = np.cumprod(is_match, axis=1, dtype=bool)
            is_reached = np.column_stack([np.ones((batch_size, 1), bool), is_accepted])[:, :k]
            controller.outcomes.observe(is_match[is_reached])
            self.num_tokens += batch_size + is_accepted.sum()
        return chosen

    def noisy(self, seconds):
        """Some steps take long, as on a shared machine."""
        return seconds * self.random.choice([1, 1, 1, 1.02, 1.05, 3])


def memory_then_arithmetic(rows):
    """A forward of some rows: bound by the weights' traffic, then by arithmetic."""
    return max(1.0, rows / 10)


@pytest.mark.parametrize(
    ("batch_size", "match_rate", "draft_cost"),
    list(itertools.product([1, 4, 16], [0.02, 0.5, 0.8, 0.97], [0.1, 0.3])),
)
def test_it_comes_close_to_the_best_fixed_k_and_never_far_below_plain(
    batch_size, match_rate, draft_cost
):
    machine = Machine(
        lambda rows: draft_cost * memory_then_arithmetic(rows), memory_then_arithmetic, match_rate
    )
    machine.noisy = lambda seconds: seconds  # what is counted below is the choice, not the noise
    controller = DraftLengthController()
    machine.run(controller, batch_size, 400)
    machine.seconds = machine.num_tokens = 0.0
    machine.run(controller, batch_size, 1000)
    rates = [machine.rate(batch_size, k) for k in range(MAX_DRAFTS + 1)]
    assert machine.num_tokens / machine.seconds > 0.95 * max(rates)
    assert machine.num_tokens / machine.seconds > 0.99 * rates[0] / MIN_GAIN


def test_hopeless_drafts_stop_within_a_few_steps():
    machine = Machine(lambda rows: 0.3, memory_then_arithmetic, match_rate=0.02)
    chosen = machine.run(DraftLengthController(), 1, 200)
    assert chosen[0] == MAX_DRAFTS
    assert sum(k > 0 for k in chosen[:40]) < 15
    assert 0 < sum(k > 0 for k in chosen[40:]) < 8  # probes


def test_it_drafts_again_when_acceptance_comes_back():
    controller = DraftLengthController()
    machine = Machine(lambda rows: 0.2, memory_then_arithmetic, match_rate=0.02)
    machine.run(controller, 1, 300)
    machine.match_rate = 0.95
    chosen = machine.run(controller, 1, 1500)
    assert np.mean([k > 0 for k in chosen[-200:]]) > 0.9


def test_noise_does_not_turn_drafting_off():
    machine = Machine(lambda rows: 0.2, memory_then_arithmetic, match_rate=0.85)
    chosen = machine.run(DraftLengthController(), 1, 600)
    assert np.mean([k > 0 for k in chosen]) > 0.9


def test_a_machine_that_slows_down_does_not_change_the_choice():
    """Seldom measured choices keep their times from when the machine was faster, or slower."""
    machine = Machine(lambda rows: 0.25, memory_then_arithmetic, match_rate=0.8)
    controller = DraftLengthController()
    chosen = []
    for phase in range(20):
        machine.noisy = lambda seconds, pace=(1.0, 1.8)[phase % 2]: seconds * pace
        chosen += machine.run(controller, 1, 100)
    rates = [machine.rate(1, k) for k in range(MAX_DRAFTS + 1)]
    assert np.mean([rates[k] for k in chosen[400:]]) > 0.97 * max(rates)


class Controlled(DraftLengthController):
    """Of a machine on which a draft step takes 3, and a forward 10 and 1 more for each row."""

    def __init__(self):
        super().__init__()
        for num_rows in range(1, 128):
            self.draft_seconds.observe(num_rows, 3.0)
            self.verify_seconds.observe(num_rows, 10.0 + num_rows)


def test_a_request_that_may_not_draft_has_a_token_and_a_row_all_the_same():
    rates = Controlled().tokens_per_second(np.array([0, 2, 0, 1]))
    expected = [4 / 14, (4 + 2 * 0.7) / (3 + 16), (4 + 2 * 0.7 + 0.49) / (6 + 17)]
    assert rates == pytest.approx(expected, rel=0.2)  # times are kept by buckets of rows


def test_requests_that_may_not_draft_can_make_drafts_not_pay_for_the_others():
    drafting, others = [MAX_DRAFTS], [0] * 40
    assert Controlled().choose(np.array(drafting)) > 0
    assert Controlled().choose(np.array(drafting + others)) == 0
