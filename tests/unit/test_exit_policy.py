"""The policy among several exits: its parts, and replays on machines with known times."""

import itertools
import math
import operator

import numpy as np
import pytest

from benchmarks.policy_replay import (
    MACHINES,
    MAX_DRAFTS,
    PROFILES,
    Replay,
    bounds,
    make_policy,
    over_mixture,
)
from layerskip_vllm.config import LayerSkipConfig
from layerskip_vllm.scheduling.cycle_times import CycleTimes
from layerskip_vllm.scheduling.observing import LEAST_SHARE, Observing
from layerskip_vllm.scheduling.outcomes import ExitOutcomes
from layerskip_vllm.scheduling.policy import PLAIN_STEPS, Choice, DraftPolicy

CONFIG = LayerSkipConfig(8, 24, exit_layers=(4, 8, 12), head_layers=1.0)


def make_times(head_layers: float = 0.0) -> CycleTimes:
    return CycleTimes([1 + head_layers, 2 + head_layers], 4 + head_layers, max_drafts=2)


def observe_often(times: CycleTimes, cycle: tuple[int, int], seconds: float) -> None:
    for _ in range(4):
        times.observe(1, cycle, seconds)


def test_a_draft_step_costs_its_layers_and_the_lm_head():
    assert make_times().estimate(1) == [[1.0, 1.25, 1.5], [1.0, 1.5, 2.0]]
    shallow, deep = make_times(head_layers=1.0).estimate(1)
    assert shallow == pytest.approx([1.0, 1 + 2 / 5, 1 + 4 / 5])
    assert deep == pytest.approx([1.0, 1 + 3 / 5, 1 + 6 / 5])


def test_all_exits_share_the_time_of_a_plain_step():
    times = make_times()
    observe_often(times, (1, 0), 3.0)
    assert [of_exit[0] for of_exit in times.estimate(1)] == [3.0, 3.0]


def test_an_unmeasured_exit_differs_by_its_layers_from_a_measured_one():
    times = make_times()
    observe_often(times, (0, 0), 2.0)
    observe_often(times, (0, 1), 3.5)  # a draft takes 1.5, and 0.5 of these are its layer
    assert times.estimate(1)[1][:2] == pytest.approx([2.0, 4.0])


def test_few_times_of_a_cycle_only_lower_its_estimate():
    times = make_times()
    observe_often(times, (0, 0), 1.0)
    observe_often(times, (0, 1), 1.25)
    times.observe(1, (1, 2), 9.0)
    times.observe(1, (1, 1), 1.1)
    assert times.estimate(1)[1] == pytest.approx([1.0, 1.1, 2.0])
    observe_often(times, (1, 2), 9.0)
    assert times.estimate(1)[1][2] == pytest.approx(9.0)


def test_a_switch_of_exits_and_back_is_timed():
    times = make_times()
    observe_often(times, (0, 1), 2.0)
    for _ in range(4):
        times.observe_step(1, (0, 1), (1, 2), 2.5)
        times.observe_step(1, (1, 2), (0, 1), 3.0)
    assert times.estimate(1)[1][2] == pytest.approx(3.5)


def test_outcomes_of_long_ago_do_not_count_after_a_change():
    outcomes = ExitOutcomes()
    for _ in range(200):
        assert not outcomes.add(5, 4)
    steps = next(step for step in itertools.count(1) if outcomes.add(5, 1))
    assert steps <= 4
    assert outcomes.match_rate < 0.4


def test_random_outcomes_of_one_rate_seldom_look_like_a_change():
    random = np.random.default_rng(0)
    outcomes = ExitOutcomes()
    num_changes = sum(outcomes.add(4, int(random.binomial(4, 0.8))) for _ in range(5000))
    assert num_changes < 50  # 1 in 400 tokens
    assert outcomes.match_rate == pytest.approx(0.8, abs=0.15)


def test_observing_takes_a_small_share_of_the_time():
    observing = Observing(CONFIG, has_graphs=False)
    observing.observe(100)
    num_cycles, cycle, cost = 10_000, 25 + 4 * 9, (25 + 4 * 9) / 16
    num_due = sum(observing.is_due(1, 4) for _ in range(num_cycles))
    assert num_due * cost / (num_cycles * cycle) == pytest.approx(LEAST_SHARE, rel=0.01)


@pytest.mark.parametrize(("has_graphs", "cost"), [(False, 25 / 16), (True, 1 + 25 / 2)])
def test_a_plain_step_without_its_graph_is_dear(has_graphs, cost):
    observing = Observing(CONFIG, has_graphs)
    observing.observe(100)
    num_due = sum(observing.is_due(1, 0) for _ in range(10_000))
    assert num_due * cost / (10_000 * 25) == pytest.approx(LEAST_SHARE, rel=0.02)


def test_no_two_steps_in_a_row_observe():
    observing = Observing(CONFIG, has_graphs=False)
    due = [observing.is_due(1, 4) for _ in range(20)]
    assert due == [True, False] * 10


def test_changes_without_end_do_not_keep_observing_dense():
    observing = Observing(CONFIG, has_graphs=False)
    spent = 0.0
    for _ in range(10_000):
        observing.start_over()
        if observing.is_due(1, 4):
            spent += (25 + 4 * 9) / 16
            observing.observe(3)
    assert spent / (10_000 * (25 + 4 * 9)) < 0.04


def test_one_exit_is_never_observed():
    policy = DraftPolicy(LayerSkipConfig(8, 24), MAX_DRAFTS)
    assert not any(policy.choose([4]).observes for _ in range(500))


def test_a_new_batch_size_starts_with_plain_steps():
    policy = DraftPolicy(CONFIG, MAX_DRAFTS)
    for batch_size in (16, 1):
        choices = [policy.choose([MAX_DRAFTS] * batch_size) for _ in range(PLAIN_STEPS + 1)]
        assert [choice.num_drafts > 0 for choice in choices] == [False] * PLAIN_STEPS + [True]
    assert policy.choose([MAX_DRAFTS] * 15).num_drafts > 0


def test_the_first_guess_drafts_before_anything_is_learnt():
    for exit_index, layer in enumerate(CONFIG.exit_layers):
        config = LayerSkipConfig(layer, 24, exit_layers=CONFIG.exit_layers, head_layers=1.0)
        policy = DraftPolicy(config, MAX_DRAFTS)
        choices = [policy.choose([MAX_DRAFTS]) for _ in range(PLAIN_STEPS + 1)]
        assert {choice.exit_index for choice in choices} == {exit_index}


def test_without_adaptive_the_first_guess_makes_all_drafts():
    config = LayerSkipConfig(8, 24, adaptive=False, exit_layers=(4, 8, 12))
    assert DraftPolicy(config, MAX_DRAFTS).choose([3, 8]) == Choice(1, 8)


def test_drafts_of_the_exit_in_use_count_once_in_an_observing_step():
    policy, expected = DraftPolicy(CONFIG, MAX_DRAFTS), DraftPolicy(CONFIG, MAX_DRAFTS)
    policy.observe_outcomes(1, [4], [2], [(3, 0), (3, 2), (3, 3)])
    expected.observe_outcomes(1, [4], [2])
    assert policy.outcomes[1].match_rate == expected.outcomes[1].match_rate
    assert policy.outcomes[0].match_rate < expected.outcomes[0].match_rate
    assert policy.outcomes[2].match_rate > expected.outcomes[2].match_rate


def best_rate(machine, match_rates, batch_size):
    return max(machine.rates(np.tile(np.array(match_rates), (batch_size, 1))).values())


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_in_steady_text_throughput_is_near_the_best_fixed_pair(name, batch_size):
    machine, ratios = MACHINES[name], []
    for match_rates in {each for text in ("swap", "code, chat") for each in PROFILES[text]}:
        replay = Replay(machine, make_policy(machine), batch_size)
        replay.run(match_rates, 300)
        rate = replay.run(match_rates, 2500)
        ratios.append(rate / best_rate(machine, match_rates, batch_size))
    assert min(ratios) > 0.96, ratios
    assert np.mean(ratios) > 0.98, ratios


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_in_steady_text_the_choice_does_not_follow_the_noise_of_every_step(name, batch_size):
    replay = Replay(MACHINES[name], make_policy(MACHINES[name]), batch_size)
    replay.run(PROFILES["swap"][0], 600)
    replay.choices.clear()
    replay.run(PROFILES["swap"][0], 2500)
    cycles = [choice[:2] for choice in replay.choices]
    num_switches = sum(map(operator.ne, cycles, cycles[1:]))  # probes and back among them
    assert num_switches < 0.04 * len(cycles)


@pytest.mark.parametrize("batch_size", [1, 4, 16])
@pytest.mark.parametrize("text", ["swap", "code, chat", "on, off"])
def test_throughput_beats_the_best_pair_over_a_mixture(text, batch_size):
    machine = MACHINES["memory-bound"]
    replay = over_mixture(machine, make_policy, PROFILES[text], batch_size)
    _, best_pair, _ = bounds(machine, PROFILES[text], batch_size)
    assert replay.num_tokens / replay.seconds > 1.05 * best_pair
    assert replay.observing_seconds / replay.seconds < 0.025


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_where_nothing_pays_it_is_near_plain(name, batch_size):
    machine = MACHINES[name]
    replay = Replay(machine, make_policy(machine), batch_size)
    match_rates = PROFILES["nothing pays"][0]
    replay.run(match_rates, 100)
    rate = replay.run(match_rates, 2000)
    assert rate > 0.985 * best_rate(machine, match_rates, batch_size)
    assert replay.observing_seconds / replay.seconds < 0.0125


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_a_change_of_text_is_followed_within_some_dozen_tokens(batch_size):
    machine, sets = MACHINES["memory-bound"], PROFILES["code, chat"]
    ratios = []
    for seed in range(5):
        replay = Replay(machine, make_policy(machine), batch_size, seed)
        replay.run(sets[0], 600)
        replay.run(sets[1], 48)
        ratios.append(replay.run(sets[1], 48) / best_rate(machine, sets[1], batch_size))
    assert math.fsum(ratios) / len(ratios) > 0.9, ratios


def test_a_longer_draft_than_any_measured_is_hoped_to_cost_its_layers_alone():
    """Plain 4 s, one draft 8 s: 3 more than its layer. A second adds its layer, not 8 / 5 of it."""
    times = make_times()
    for cycle, seconds in (((0, 0), 4.0), ((0, 1), 8.0)):
        for _ in range(8):
            times.observe(1, cycle, seconds)
    assert times.estimate(1)[0] == pytest.approx([4.0, 8.0, 9.0])
