"""Measured and estimated times of a cycle."""

import pytest

from layerskip_vllm.scheduling.cycle_times import CycleTimes

PRIOR = [1.0, 1.25, 1.5, 1.75, 2.0]  # E = 1 of 4 layers


def make_times() -> CycleTimes:
    return CycleTimes(draft_layers=[1], num_layers=4, max_drafts=4)


def test_estimates_use_recent_times_and_ignore_outliers():
    times = make_times()
    for seconds in (0.1, 0.1, 0.1, 5, 1, 2, 3, 50, 60, 4, 70):
        times.observe(1, (0, 4), seconds)
    assert times.estimate(1)[0][4] == 3


def test_without_measurements_the_layer_count_decides():
    assert make_times().estimate(1)[0] == PRIOR


def test_one_measurement_scales_the_layer_count():
    times = make_times()
    times.observe(1, (0, 4), 20.0)
    assert times.estimate(1)[0] == pytest.approx([10 * cost for cost in PRIOR])


def test_between_measurements_the_scale_is_interpolated_and_beyond_it_is_kept():
    times = make_times()
    times.observe(1, (0, 1), 1.25)  # scale 1
    times.observe(1, (0, 3), 3.50)  # scale 2
    assert times.estimate(1)[0] == pytest.approx([1.0, 1.25, 1.5 * 1.5, 3.5, 4.0])


def test_near_batch_sizes_share_their_times():
    times = make_times()
    times.observe(16, (0, 0), 3.0)
    assert times.estimate(17)[0][0] == 3.0
    assert times.estimate(32)[0][0] == 1.0  # not measured, so in units of a forward


def test_another_batch_size_starts_from_the_shape_of_the_nearest_one():
    times = make_times()
    for k, seconds in enumerate([1.0, 4.0, 5.0, 6.0, 7.0]):
        times.observe(8, (0, k), seconds)
    times.observe(1, (0, 0), 1.0)
    times.observe(1, (0, 4), 1.1)
    assert times.estimate(12)[0] == pytest.approx([1.0, 4.0, 5.0, 6.0, 7.0])
    times.observe(12, (0, 4), 14.0)
    assert times.estimate(12)[0] == pytest.approx([2.0, 8.0, 10.0, 12.0, 14.0])


def test_a_probe_is_timed_by_a_change_of_k_and_its_reversal():
    times = make_times()
    times.observe_step(1, (0, 0), (0, 0), 10.0)
    times.observe_step(1, (0, 0), (0, 1), 12.0)  # proposes one draft
    times.observe_step(1, (0, 1), (0, 0), 11.0)  # verifies it
    assert times.estimate(1)[0][:2] == pytest.approx([10.0, 13.0])


def test_a_change_of_k_without_its_reversal_is_not_timed():
    times = make_times()
    times.observe_step(1, (0, 0), (0, 0), 10.0)
    times.observe_step(1, (0, 0), (0, 1), 99.0)
    times.observe_step(1, (0, 1), (0, 2), 99.0)
    times.observe_step(2, (0, 2), (0, 1), 99.0)  # another batch size
    assert times.estimate(1)[0] == pytest.approx([10 * cost for cost in PRIOR])


def test_a_probe_beside_a_disturbed_step_times_nothing():
    times = make_times()
    times.observe_step(1, (0, 0), (0, 0), 30.0)  # disturbed, and the only one
    times.observe_step(1, (0, 0), (0, 1), 12.0)
    times.observe_step(1, (0, 1), (0, 0), 11.0)
    assert times.estimate(1)[0] == pytest.approx([30 * cost for cost in PRIOR])
