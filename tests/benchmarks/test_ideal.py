"""The row-aware ideal against hand-computed sums."""

import pytest

from benchmarks.forward_time import ForwardTime, ForwardTimes
from benchmarks.ideal import IdealCycle

TIMES = ForwardTimes(
    {
        1: ForwardTime(layers_s=0.088, head_s=0.004),
        5: ForwardTime(layers_s=0.110, head_s=0.005),
        10: ForwardTime(layers_s=0.130, head_s=0.006),
    }
)


def test_cycle_is_drafts_then_fresh_rows_then_remaining_layers_then_head():
    cycle = IdealCycle.of(
        TIMES, batch_size=1, num_speculative_tokens=4, exit_layer=6, num_layers=22
    )
    assert cycle.draft_s == pytest.approx(4 * (0.088 * 6 / 22 + 0.004))
    assert cycle.early_s == pytest.approx(0.088 * 6 / 22)
    assert cycle.remaining_s == pytest.approx(0.110 * 16 / 22)
    assert cycle.head_s == pytest.approx(0.005)
    assert cycle.plain_s == pytest.approx(0.092)
    assert cycle.total_s == pytest.approx(0.112 + 0.024 + 0.080 + 0.005)


def test_speedup_compares_a_cycle_with_plain_steps_for_its_tokens():
    cycle = IdealCycle(draft_s=2, early_s=1, remaining_s=4, head_s=1, plain_s=4)
    assert cycle.speedup(tokens_per_cycle=3) == 1.5


def test_with_free_rows_and_head_only_the_layer_count_matters():
    """A cycle then costs (K*E + L) / L full forwards."""
    flat = ForwardTimes({1: ForwardTime(1.0, 0.0), 128: ForwardTime(1.0, 0.0)})
    cycle = IdealCycle.of(flat, batch_size=8, num_speculative_tokens=4, exit_layer=6, num_layers=22)
    assert cycle.total_s == pytest.approx((4 * 6 + 22) / 22)


def test_between_measured_rows_times_are_interpolated():
    assert TIMES.at(3).layers_s == pytest.approx(0.099)
    assert TIMES.at(9).head_s == pytest.approx(0.0058)
    assert TIMES.at(5) == ForwardTime(0.110, 0.005)


@pytest.mark.parametrize("num_rows", [0, 11])
def test_row_counts_out_of_range_are_refused(num_rows):
    with pytest.raises(ValueError, match=r"must be in \[1, 10\]"):
        TIMES.at(num_rows)


def test_median_is_over_all_steps_of_all_rounds():
    rounds = [
        {1: [ForwardTime(1, 9), ForwardTime(2, 8)]},
        {1: [ForwardTime(90, 7)]},
    ]
    assert ForwardTimes.median(rounds).measured == {1: ForwardTime(2, 8)}
