"""Median, quartiles and range of a figure that was measured several times."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Order statistics of at least one value."""

    median: float
    low_quartile: float
    high_quartile: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Compute the statistics; quartiles interpolate, with minimum and maximum included.

        Raises:
            ValueError: There is no value.
        """
        ordered = sorted(values)
        if not ordered:
            raise ValueError("a spread needs at least one value")
        if len(ordered) == 1:
            ordered *= 2
        low, median, high = statistics.quantiles(ordered, n=4, method="inclusive")
        return cls(median, low, high, ordered[0], ordered[-1])


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """The spread of the ratios turn by turn: a slowdown of a whole turn cancels out."""
    return Spread.of(a / b for a, b in zip(numerators, denominators, strict=True))


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest value that at least `percent` % of the values do not exceed."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)  # ceiling
    return ordered[max(int(rank), 1) - 1]
