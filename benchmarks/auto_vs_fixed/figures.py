"""The ratios of the comparison, from the measurements."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.auto_vs_fixed.plan import AUTO, MIXTURE, PLAIN, Contender, Plan, mixed_speed
from benchmarks.auto_vs_fixed.results import Measurement, Results
from layerskip_vllm.measure.spread import Spread, ratios

LEAST_OF_BEST, LEAST_OVER_PAIR, LEAST_OF_PLAIN = 0.97, 1.05, 0.97
"""Goals: over a set's best pair, over the mixture's best pair, and over plain vLLM."""

BEST_OF_EACH = "each set's best pair"


@dataclass(frozen=True)
class Figure:
    """`self:auto` against one rival.

    Attributes:
        batch_size: Concurrent requests.
        stage: A set, or the mixture.
        rival: Its name.
        auto: Tokens/s of `self:auto`, turn by turn.
        ratio: Over the rival's in the same turns; of the mixture, in the same cycles.
        wanted: The ratio's goal; None without a goal.
    """

    batch_size: int
    stage: str
    rival: str
    auto: Spread
    ratio: Spread
    wanted: float | None = None

    @property
    def is_missed(self) -> bool:
        """Whether the median is below the goal."""
        return self.wanted is not None and self.ratio.median < self.wanted


def figures(results: Results, plan: Plan, batch_size: int) -> list[Figure]:
    """All figures of the finished stages of a batch size."""
    found = []
    for stage in plan.text_sets:
        if results.is_finished(batch_size, stage):
            found += of_set(results.of(batch_size, stage), plan.text_sets[stage])
    if results.is_finished(batch_size, MIXTURE):
        found += of_mixture(results.of(batch_size, MIXTURE), plan.paying)
    return found


def of_set(measurements: Sequence[Measurement], pays: bool) -> list[Figure]:
    """Against plain vLLM and the best pair of one set.

    Args:
        measurements: Of its stage.
        pays: Whether drafting should beat plain vLLM there.
    """
    speeds = by_contender(measurements)
    batch_size, stage = measurements[0].turn[:2]

    def against(rival: Contender, wanted: float | None) -> Figure:
        auto, other = speeds[AUTO], speeds[rival]
        ratio = ratios(auto, other)
        return Figure(batch_size, stage, rival.name, Spread.of(auto), ratio, wanted)

    found = [against(PLAIN, None if pays else LEAST_OF_PLAIN)]
    pairs = {each: speed for each, speed in speeds.items() if each not in (AUTO, PLAIN)}
    if pairs:
        best = max(pairs, key=lambda pair: Spread.of(pairs[pair]).median)
        found.insert(0, against(best, LEAST_OF_BEST))
    return found


def of_mixture(measurements: Sequence[Measurement], text_sets: Sequence[str]) -> list[Figure]:
    """Against the best single pair over all sets, and against the best pair of each.

    Args:
        measurements: Of the mixture's stage.
        text_sets: In the order of its phases; one phase of each makes a cycle.
    """
    batch_size, stage = measurements[0].turn[:2]
    by_set = [
        by_contender(each for each in measurements if each.turn.text_set == text_set)
        for text_set in text_sets
    ]
    cycles = {
        contender: [
            mixed_speed(phases)
            for phases in zip(*(of_set[contender] for of_set in by_set), strict=True)
        ]
        for contender in by_set[0]
    }
    auto = cycles.pop(AUTO)
    best = max(cycles, key=lambda pair: Spread.of(cycles[pair]).median)
    best_of_each = [
        max(
            (speeds for contender, speeds in of_set.items() if contender != AUTO),
            key=lambda speeds: Spread.of(speeds).median,
        )
        for of_set in by_set
    ]
    oracle = [mixed_speed(phases) for phases in zip(*best_of_each, strict=True)]
    spread = Spread.of(auto)
    return [
        Figure(batch_size, stage, best.name, spread, ratios(auto, cycles[best]), LEAST_OVER_PAIR),
        Figure(batch_size, stage, BEST_OF_EACH, spread, ratios(auto, oracle)),
    ]


def by_contender(measurements: Iterable[Measurement]) -> dict[Contender, list[float]]:
    """Tokens/s of each contender, in the order of the turns."""
    speeds: dict[Contender, list[float]] = {}
    for measurement in sorted(measurements, key=lambda each: each.turn.number):
        speeds.setdefault(measurement.contender, []).append(measurement.tokens_per_s)
    return speeds
