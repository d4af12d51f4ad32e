"""The policy on machines with known times and acceptance."""

import itertools

import numpy as np
import pytest

from layerskip_vllm.config import LayerSkipConfig
from layerskip_vllm.scheduling.outcomes import DraftOutcomes
from layerskip_vllm.scheduling.policy import MIN_GAIN, PLAIN_STEPS, Choice, DraftPolicy

MAX_DRAFTS = 8


def make_policy(**options) -> DraftPolicy:
    config = LayerSkipConfig(exit_layer=2, num_layers=10, **options)
    return DraftPolicy(config, MAX_DRAFTS)


def test_outcomes_start_from_a_prior_and_follow_a_change():
    outcomes = DraftOutcomes()
    assert outcomes.match_rate == pytest.approx(0.7)
    for _ in range(200):
        outcomes.observe([4], [4])
        outcomes.observe([], [])
    assert outcomes.match_rate > 0.99
    assert outcomes.all_matched
    for _ in range(400):
        outcomes.observe([4, 4], [0, 1])
    assert outcomes.match_rate == pytest.approx(1 / 3, abs=0.01)  # of three reached, one matched
    assert not outcomes.all_matched


class Machine:
    """Has constant times and acceptance, and runs the policy as the scheduler does."""

    def __init__(self, draft_seconds, verify_seconds, match_rate, seed=0):
        self.draft_seconds, self.verify_seconds = draft_seconds, verify_seconds
        self.match_rate = match_rate
        self.random = np.random.default_rng(seed)
        self.seconds = self.num_tokens = 0.0
        self.last = 0

    def rate(self, batch_size, k):
        """Exact tokens per second of a fixed K."""
        tokens = batch_size * (self.match_rate ** np.arange(k + 1)).sum()
        return tokens / (self.propose(batch_size, k) + self.verify_seconds(batch_size * (k + 1)))

    def propose(self, batch_size, k):
        return k * self.draft_seconds(batch_size)

    def run(self, policy, batch_size, num_steps):
        chosen = []
        for _ in range(num_steps):
            k = policy.choose([MAX_DRAFTS] * batch_size).num_drafts
            chosen.append(k)
            # A step verifies the previous step's drafts, and then drafts.
            rows = batch_size * (self.last + 1)
            seconds = self.noisy(self.verify_seconds(rows) + self.propose(batch_size, k))
            self.seconds += seconds
            policy.observe_step(batch_size, Choice(0, self.last), Choice(0, k), seconds)
            is_match = self.random.random((batch_size, self.last)) < self.match_rate
            num_accepted = np.cumprod(is_match, axis=1).sum(axis=1)
            if self.last:
                policy.observe_outcomes(0, [self.last] * batch_size, num_accepted.tolist())
            self.num_tokens += batch_size + num_accepted.sum()
            self.last = k
        return chosen

    def noisy(self, seconds):
        """Some steps take longer, as on a shared machine."""
        return seconds * self.random.choice([1, 1, 1, 1.02, 1.05, 3])


def memory_then_arithmetic(rows):
    """Time of a forward: bound by memory traffic, and with more rows by arithmetic."""
    return max(1.0, rows / 10)


@pytest.mark.parametrize(
    ("batch_size", "match_rate", "draft_cost"),
    list(itertools.product([1, 4, 16], [0.02, 0.5, 0.8, 0.97], [0.1, 0.3])),
)
def test_throughput_is_near_the_best_fixed_k_and_never_far_below_plain(
    batch_size, match_rate, draft_cost
):
    machine = Machine(
        lambda rows: draft_cost * memory_then_arithmetic(rows), memory_then_arithmetic, match_rate
    )
    machine.noisy = lambda seconds: seconds  # count the choices without noise
    policy = make_policy()
    machine.run(policy, batch_size, 400)
    machine.seconds = machine.num_tokens = 0.0
    machine.run(policy, batch_size, 1000)
    rates = [machine.rate(batch_size, k) for k in range(MAX_DRAFTS + 1)]
    assert machine.num_tokens / machine.seconds > 0.95 * max(rates)
    assert machine.num_tokens / machine.seconds > 0.985 * rates[0]


def test_drafting_stops_soon_when_drafts_fail():
    machine = Machine(lambda rows: 0.3, memory_then_arithmetic, match_rate=0.02)
    chosen = machine.run(make_policy(), 1, 250)
    assert chosen[PLAIN_STEPS] > 0
    assert sum(k > 0 for k in chosen[:40]) < 18
    assert 0 < sum(k > 0 for k in chosen[40:]) < 8  # probes


def test_drafting_resumes_when_acceptance_recovers():
    policy = make_policy()
    machine = Machine(lambda rows: 0.2, memory_then_arithmetic, match_rate=0.02)
    machine.run(policy, 1, 300)
    machine.match_rate = 0.95
    chosen = machine.run(policy, 1, 1500)
    assert np.mean([k > 0 for k in chosen[-200:]]) > 0.9


@pytest.mark.parametrize("num_steps_before", [100, 600])
def test_a_batch_too_large_for_drafts_is_found_out_soon(num_steps_before):
    """Times of a small batch, where drafts pay, say little about it."""
    machine = Machine(
        lambda rows: 0.27 * memory_then_arithmetic(rows), memory_then_arithmetic, match_rate=0.8
    )
    policy = make_policy()
    machine.run(policy, 1, num_steps_before)
    chosen = machine.run(policy, 16, 60)
    rates = [machine.rate(16, k) for k in range(MAX_DRAFTS + 1)]
    assert np.mean([rates[k] for k in chosen[20:]]) > 0.95 * max(rates)


def test_noise_does_not_turn_drafting_off():
    machine = Machine(lambda rows: 0.2, memory_then_arithmetic, match_rate=0.85)
    chosen = machine.run(make_policy(), 1, 600)
    assert np.mean([k > 0 for k in chosen]) > 0.9


def test_a_machine_that_slows_down_does_not_change_the_choice():
    """Rarely measured choices keep times from when the machine was faster or slower."""
    machine = Machine(lambda rows: 0.25, memory_then_arithmetic, match_rate=0.8)
    policy = make_policy()
    chosen = []
    for phase in range(20):
        machine.noisy = lambda seconds, pace=(1.0, 1.8)[phase % 2]: seconds * pace
        chosen += machine.run(policy, 1, 100)
    rates = [machine.rate(1, k) for k in range(MAX_DRAFTS + 1)]
    assert np.mean([rates[k] for k in chosen[400:]]) > 0.95 * max(rates)


def test_the_choice_respects_the_requests_current_limits():
    policy = make_policy()
    policy.choose([MAX_DRAFTS])
    assert policy.choose([2, 0]).num_drafts <= 2
    assert policy.choose([0]).num_drafts == 0
    assert policy.choose([]).num_drafts == 0


def test_without_adaptive_all_drafts_are_made():
    policy = make_policy(adaptive=False)
    limits = [[MAX_DRAFTS], [3, 1], [0]]
    assert [policy.choose(each).num_drafts for each in limits] == [8, 3, 0]


def measured_policy() -> DraftPolicy:
    """On a machine where a cycle of n requests takes 10 + n, plus 4 for each draft step."""
    policy = make_policy()
    for batch_size in (1, 4, 41):
        for _ in range(PLAIN_STEPS):
            policy.choose([MAX_DRAFTS] * batch_size)
        for k in range(MAX_DRAFTS + 1):
            policy.cycle_times.observe(batch_size, (0, k), 10 + batch_size + 4 * k)
    return policy


def test_a_request_that_may_not_draft_still_yields_a_token():
    (rates,) = measured_policy().tokens_per_second([0, 2, 0, 1])
    assert rates == pytest.approx([4 / 14, (4 + 2 * 0.7) / 18, (4 + 2 * 0.7 + 0.49) / 22])


def test_requests_that_may_not_draft_can_make_drafts_not_pay_for_the_others():
    assert measured_policy().choose([MAX_DRAFTS]).num_drafts > 0
    assert measured_policy().choose([MAX_DRAFTS] + [0] * 40).num_drafts == 0


def test_drafting_must_gain_more_than_noise():
    policy = measured_policy()
    policy.observe_outcomes(0, [8] * 100, [0] * 100)
    (rates,) = policy.tokens_per_second([8])
    assert max(rates) < MIN_GAIN * rates[0]
    assert policy.choose([8]).num_drafts == 0
