"""What a cycle costs, by batch size and K: measured, and estimated where it was not."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from functools import lru_cache

TIMES_KEPT = 8
"""Recent times of each (batch size, K). Their lower quartile counts: disturbances only add time."""

BUCKETS_PER_DOUBLING = 4
"""Batch sizes within about 19 % of each other share a bucket."""


class CycleTimes:
    """Seconds from one step to the next, where both propose and verify K drafts a request.

    An estimate starts from the layer-count model, (L + K * E) / L full forwards, and is scaled to
    what was measured: first at the nearest batch size with several Ks, then at this one. Between
    measured Ks the scale is interpolated, beyond them it is kept.
    """

    def __init__(self, exit_layer: int, num_layers: int, max_drafts: int) -> None:
        draft_cost = exit_layer / num_layers
        self._prior = [1 + draft_cost * k for k in range(max_drafts + 1)]
        self._samples: dict[tuple[int, int], deque[float]] = {}
        self._seconds: dict[int, dict[int, float]] = {}  # bucket -> K -> lower quartile
        self._change: tuple[int, int, int, float] | None = None
        """The last step, where it proposed another K than it verified."""

    def observe_step(
        self, batch_size: int, num_verified: int, num_proposed: int, seconds: float
    ) -> None:
        """Add the time of a step that verified one K and then proposed another, or the same.

        Two steps from one K to another and back take as long as a cycle with each, so a K is timed
        without being kept. What is left for the other K is no time where the known cycle was a
        disturbed one, longer than both steps; then nothing is learnt.
        """
        change, self._change = self._change, None
        if num_verified == num_proposed:
            self.observe(batch_size, num_proposed, seconds)
        elif change is not None and change[:3] == (batch_size, num_proposed, num_verified):
            usual = self._seconds.get(_bucket_of(batch_size), {}).get(num_proposed)
            if usual is not None and change[3] + seconds > usual:
                self.observe(batch_size, num_verified, change[3] + seconds - usual)
        else:
            self._change = batch_size, num_verified, num_proposed, seconds

    def observe(self, batch_size: int, num_drafts: int, seconds: float) -> None:
        """Add the time of a whole cycle."""
        bucket = _bucket_of(batch_size)
        samples = self._samples.setdefault((bucket, num_drafts), deque(maxlen=TIMES_KEPT))
        samples.append(seconds)
        ordered = sorted(samples)
        self._seconds.setdefault(bucket, {})[num_drafts] = ordered[len(ordered) // 4]

    def estimate(self, batch_size: int) -> list[float]:
        """Time of a cycle with K = 0 .. max_drafts, [max_drafts + 1].

        In seconds where something was measured at this batch size, else in a unit of its own:
        compare estimates of one batch size only.
        """
        bucket = _bucket_of(batch_size)
        measured = self._seconds.get(bucket, {})
        times = self._prior
        if len(measured) < len(times):
            others = [b for b, known in self._seconds.items() if len(known) > 1 and b != bucket]
            if others:
                nearest = min(others, key=lambda b: abs(b - bucket))
                times = _scaled(times, self._seconds[nearest])
        return _scaled(times, measured)


@lru_cache(maxsize=4096)
def _bucket_of(batch_size: int) -> int:
    return round(BUCKETS_PER_DOUBLING * math.log2(batch_size))


def _scaled(times: list[float], measured: Mapping[int, float]) -> list[float]:
    """Scale times by K so that they run through the measured ones."""
    if not measured:
        return times
    known = sorted((k, seconds / times[k]) for k, seconds in measured.items())
    scales, upper = [], 0
    for k in range(len(times)):
        while upper < len(known) and known[upper][0] < k:
            upper += 1
        k0, low = known[max(upper - 1, 0)]
        k1, high = known[min(upper, len(known) - 1)]
        scales.append(low if k0 == k1 or k <= k0 else low + (high - low) * (k - k0) / (k1 - k0))
    return [seconds * scale for seconds, scale in zip(times, scales, strict=True)]
