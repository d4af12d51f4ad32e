"""What a cycle costs, by batch size, exit and K: measured, and estimated where it was not."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

TIMES_KEPT, PART = 8, 4
"""Recent times of each (batch size, cycle), and the part of them below the one that counts: the
lower quartile, since disturbances only add time."""

EXITS_TIMES_KEPT, EXITS_PART, ENOUGH_TIMES = 16, 6, 4
"""The same with several exits, whose many cycles give disturbances more chances to decide. Fewer
times than enough can lower an estimate, but not raise it: after a disturbed one the cycle might not
be chosen again for long."""

NEXT = 2
"""How much longer a draft than a measured one may be hoped to be cheap; on graphs every other K has
some."""

BUCKETS_PER_DOUBLING = 4
"""Batch sizes within about 19 % of each other share a bucket."""

Cycle = tuple[int, int]
"""The exit that drafts, as an index into the exits, and K. With K = 0 all exits are the same."""


class Measured(NamedTuple):
    """Seconds by K of one exit at one batch size."""

    usual: dict[int, float]
    """Where enough times are known."""
    least: dict[int, float]
    """The least time where few are known."""


class CycleTimes:
    """Seconds from one step to the next, where both propose and verify K drafts at one exit.

    An estimate starts from the layer-count model: a full forward costs L layers and h for the LM
    head, a draft E and what the head that drafts costs. It is scaled to what was measured: first at
    the nearest batch size with several Ks, then at this one. Between measured Ks the scale is
    interpolated, beyond them it is kept.
    """

    def __init__(self, draft_layers: Sequence[float], num_layers: float, max_drafts: int) -> None:
        """Know nothing but the layers.

        Args:
            draft_layers: What a draft costs at each exit, in decoder layers, its head included.
            num_layers: What the full forward costs, its head included.
            max_drafts: The most drafts of a cycle.
        """
        shares = [layers / num_layers for layers in draft_layers]
        self._priors = [[1 + share * k for k in range(max_drafts + 1)] for share in shares]
        self._num_kept, self._part, self._enough = TIMES_KEPT, PART, 1
        if len(draft_layers) > 1:
            self._num_kept, self._part = EXITS_TIMES_KEPT, EXITS_PART
            self._enough = ENOUGH_TIMES
        self._samples: dict[tuple[int, Cycle], deque[float]] = {}
        self._measured: dict[int, list[Measured]] = {}
        """Bucket -> exit; K = 0 is known for all exits or for none."""
        self._estimates: dict[int, list[list[float]]] = {}
        """By bucket, since the last change of a measured time. A new time changes one in three."""
        self._change: tuple[int, Cycle, Cycle, float] | None = None
        """The last step, where it proposed another cycle than it verified."""

    def observe_step(
        self, batch_size: int, verified: Cycle, proposed: Cycle, seconds: float
    ) -> None:
        """Add the time of a step that verified one cycle and then proposed another, or the same.

        Two steps from one cycle to another and back take as long as both cycles, so a cycle is
        timed without being kept. What is left for the other is no time where the known cycle was a
        disturbed one, longer than both steps; then nothing is learnt.
        """
        verified, proposed = _normal(verified), _normal(proposed)
        change, self._change = self._change, None
        if verified == proposed:
            self.observe(batch_size, proposed, seconds)
        elif change is not None and change[:3] == (batch_size, proposed, verified):
            exit_index, num_drafts = proposed
            usual = self._at(bucket_of(batch_size))[exit_index].usual.get(num_drafts)
            if usual is not None and change[3] + seconds > usual:
                self.observe(batch_size, verified, change[3] + seconds - usual)
        else:
            self._change = batch_size, verified, proposed, seconds

    def observe(self, batch_size: int, cycle: Cycle, seconds: float) -> None:
        """Add the time of a whole cycle."""
        bucket, cycle = bucket_of(batch_size), _normal(cycle)
        samples = self._samples.setdefault((bucket, cycle), deque(maxlen=self._num_kept))
        samples.append(seconds)
        ordered = sorted(samples)
        by_exit = self._measured.setdefault(bucket, self._at(bucket))
        exit_index, num_drafts = cycle
        is_enough = len(ordered) >= self._enough
        time = ordered[len(ordered) // self._part if is_enough else 0]
        for measured in by_exit if num_drafts == 0 else [by_exit[exit_index]]:
            times = measured.usual if is_enough else measured.least
            if times.get(num_drafts) != time:
                times[num_drafts] = time
                self._estimates.clear()
            if is_enough:
                measured.least.pop(num_drafts, None)

    def estimate(self, batch_size: int) -> list[list[float]]:
        """Time of a cycle at each exit with K = 0 .. max_drafts, [exits][max_drafts + 1].

        In seconds where something was measured at this batch size, else in a unit of its own:
        compare estimates of one batch size only.
        """
        bucket = bucket_of(batch_size)
        if bucket not in self._estimates:
            self._estimates[bucket] = self._estimate(bucket)
        return self._estimates[bucket]

    def _estimate(self, bucket: int) -> list[list[float]]:
        by_exit = self._at(bucket)
        times = self._priors
        if any(len(measured.usual) < len(times[0]) for measured in by_exit):
            others = [
                other
                for other, measured in self._measured.items()
                if other != bucket and any(len(each.usual) > 1 for each in measured)
            ]
            if others:
                nearest = min(others, key=lambda other: abs(other - bucket))
                times = _fitted(times, self._measured[nearest])
        return _fitted(times, by_exit)

    def _at(self, bucket: int) -> list[Measured]:
        return self._measured.get(bucket) or [Measured({}, {}) for _ in self._priors]


@lru_cache(maxsize=4096)
def bucket_of(batch_size: int) -> int:
    """The bucket of a batch size, at least 1."""
    return round(BUCKETS_PER_DOUBLING * math.log2(batch_size))


def _normal(cycle: Cycle) -> Cycle:
    return cycle if cycle[1] else (0, 0)


def _fitted(times: list[list[float]], by_exit: Sequence[Measured]) -> list[list[float]]:
    """Fit each exit's times to those measured at one batch size.

    An exit without a measured draft takes the times of the one that has one and costs most nearly
    as much. The two differ by their layers and share the rest, such as what it takes to start a
    draft step, so their difference keeps the scale of a plain step.
    """
    fitted = []
    for mine, (usual, least) in zip(times, by_exit, strict=True):
        scaled = _scaled(mine, usual)
        lower = {k: seconds for k, seconds in least.items() if usual and seconds < scaled[k]}
        fitted.append(_scaled(mine, usual | lower) if lower else scaled)
        if len(times) > 1 and any(usual):
            _with_hope(fitted[-1], mine, usual | lower)
    known_exits = [i for i, measured in enumerate(by_exit) if any(measured.usual)]
    for i, (_, least) in enumerate(by_exit):
        if known_exits and i not in known_exits:
            nearest = min(known_exits, key=lambda known: abs(times[known][-1] - times[i][-1]))
            scale = fitted[nearest][0] / times[nearest][0]
            triples = zip(fitted[nearest], times[i], times[nearest], strict=True)
            moved = [seconds + scale * (mine - other) for seconds, mine, other in triples]
            moved = [max(seconds, fitted[nearest][0]) for seconds in moved]
            fitted[i] = [min(seconds, least.get(k, seconds)) for k, seconds in enumerate(moved)]
    return fitted


def _scaled(times: list[float], measured: Mapping[int, float]) -> list[float]:
    """Scale times by K so that they run through the measured ones."""
    if not measured:
        return times
    known = sorted(measured)
    scales = np.interp(range(len(times)), known, [measured[k] / times[k] for k in known])
    return (scales * times).tolist()


def _with_hope(seconds: list[float], times: list[float], measured: Mapping[int, float]) -> None:
    """Let a little more drafts than were measured, or than none, cost no more than their layers, at
    the scale of a plain step. A K that seems too good is tried and timed; one that seems too dear,
    by what a much larger K takes, would wait for probes.
    """
    scale = seconds[0] / times[0]
    for k in range(1, len(seconds)):
        known = next((j for j in range(k, k - 1 - NEXT, -1) if j in measured), k)
        seconds[k] = min(seconds[k], seconds[known] + scale * (times[k] - times[known]))
