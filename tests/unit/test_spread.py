"""Medians, quartiles and ratios."""

import pytest

from layerskip_vllm.measure.spread import Spread, percentile, ratios


def test_quartiles_interpolate_between_the_values():
    assert Spread.of([5, 1, 4, 2]) == Spread(
        median=3, low_quartile=1.75, high_quartile=4.25, min=1, max=5
    )


def test_one_value_is_its_own_spread():
    assert Spread.of([7.0]) == Spread(7, 7, 7, 7, 7)


def test_a_spread_needs_a_value():
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])


def test_a_slow_round_cancels_out_of_a_ratio():
    assert ratios([20, 2, 40], [10, 1, 20]) == Spread(2, 2, 2, 2, 2)


def test_ratios_of_unequal_rounds_are_refused():
    with pytest.raises(ValueError, match="zip"):
        ratios([1, 2], [1])


@pytest.mark.parametrize(("percent", "expected"), [(50, 5), (90, 9), (99, 10), (100, 10), (1, 1)])
def test_percentile_is_a_measured_value(percent, expected):
    assert percentile(range(10, 0, -1), percent) == expected
