"""How many tokens to draft next: K from measured times and the present acceptance.

What pays depends on the checkpoint, the text, the batch size and the machine, and all but the last
change while the server runs. The controller knows none of them beforehand: it chooses the K, 0
included, that promises the most tokens per second by what it has measured so far.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections import deque
from functools import lru_cache

import numpy as np

PRIOR_MATCH_RATE, PRIOR_TRIALS = 0.7, 4.0
"""The belief before the first drafts: enough to try, and little enough to unlearn at once."""

TIMES_KEPT = 8
"""Recent times per bucket of rows. Their lower quartile counts: disturbances only add time."""

BUCKETS_PER_DOUBLING = 4
"""Row counts within about 19 % of each other share a bucket."""

DECAY_PER_STEP = 0.98
"""Weight that past outcomes keep in each step that has new ones."""

MIN_GAIN = 1.05
"""Drafting must promise this much more than plain decoding, or noise would decide."""

FIRST_PROBE, LAST_PROBE = 8, 128
"""Steps between two probes: doubled from the first to the last."""


class RowTimes:
    """Seconds that a forward takes, by its number of rows."""

    def __init__(self) -> None:
        self._samples: dict[int, deque[float]] = {}
        self._seconds: dict[int, float] = {}
        self._buckets: list[int] = []  # ascending

    def observe(self, num_rows: int, seconds: float) -> None:
        """Add a measured time."""
        bucket = _bucket_of(num_rows)
        if bucket not in self._samples:
            self._samples[bucket] = deque(maxlen=TIMES_KEPT)
            insort(self._buckets, bucket)
        samples = self._samples[bucket]
        samples.append(seconds)
        self._seconds[bucket] = sorted(samples)[len(samples) // 4]

    def estimate(self, num_rows: int) -> float:
        """Seconds for a number of rows; at least one time must have been observed.

        What was never measured is taken to cost as little as it may. So it is tried, and then it
        is measured. Between measured forwards it costs as much as the next smaller one. Time grows
        with rows, and ever faster: below the smallest forward it falls at most in proportion, and
        beyond the largest it rises at least as between the smallest and the largest.
        """
        bucket = _bucket_of(num_rows)
        smallest, largest = self._buckets[0], self._buckets[-1]
        first, last = self._seconds[smallest], self._seconds[largest]
        if bucket < smallest:
            return first * _rows_of(bucket) / _rows_of(smallest)
        if bucket > largest > smallest:
            slope = max(0.0, last - first) / (_rows_of(largest) - _rows_of(smallest))
            return last + slope * (_rows_of(bucket) - _rows_of(largest))
        return self._seconds[self._buckets[bisect_right(self._buckets, bucket) - 1]]

    def __bool__(self) -> bool:
        return bool(self._samples)


@lru_cache(maxsize=4096)
def _bucket_of(num_rows: int) -> int:
    return round(BUCKETS_PER_DOUBLING * math.log2(num_rows))


def _rows_of(bucket: int) -> float:
    return 2.0 ** (bucket / BUCKETS_PER_DOUBLING)


class DraftOutcomes:
    """How often a draft is what the target says: decayed counts over all requests."""

    def __init__(self) -> None:
        self._reached, self._matched = PRIOR_TRIALS, PRIOR_TRIALS * PRIOR_MATCH_RATE
        self.all_matched = False
        """Whether every draft of the last step that had some was right."""

    def observe(self, is_match: np.ndarray) -> None:
        """Add one step's drafts whose outcome was told, [num_reached] bool; without any, nothing.

        A draft's outcome is told where every draft before it is right.
        """
        if len(is_match) == 0:
            return
        self._reached = self._reached * DECAY_PER_STEP + len(is_match)
        self._matched = self._matched * DECAY_PER_STEP + is_match.sum()
        self.all_matched = bool(is_match.all())

    @property
    def match_rate(self) -> float:
        """Matched of reached, in [0, 1]."""
        return float(self._matched / self._reached)


class DraftLengthController:
    """Chooses K, step by step."""

    def __init__(self) -> None:
        self.outcomes = DraftOutcomes()
        self.draft_seconds = RowTimes()
        """Of one draft step, by batch size."""
        self.verify_seconds = RowTimes()
        """Of all else in a cycle, scheduling included, by the rows of the verify batch."""
        self._steps_to_probe = self._probe_interval = FIRST_PROBE
        self._num_probes = 0
        self._is_probe = False

    def choose(
        self,
        limits: np.ndarray,  # [num_reqs], int64: most drafts of each request of the batch
    ) -> int:
        """K of the next cycle, in [0, limits.max()]."""
        max_drafts = int(limits.max())
        if max_drafts == 0 or not self.draft_seconds or not self.verify_seconds:
            return max_drafts
        rates = self.tokens_per_second(limits)
        best = rates.index(max(rates))
        if rates[best] < MIN_GAIN * rates[0]:
            best = 0
        return self._probe(best, max_drafts)

    def tokens_per_second(
        self,
        limits: np.ndarray,  # [num_reqs], int64, one of them above 0
    ) -> list[float]:
        """What a cycle with K = 0 .. limits.max() promises, all requests together.

        A request's k-th draft is right only if those before it are. One that may draft less, or
        nothing, has its token and its row all the same.
        """
        draft_step = self.draft_seconds.estimate(int(np.count_nonzero(limits)))
        num_rows = len(limits)
        num_tokens, is_right = float(num_rows), 1.0
        rates = [num_tokens / self.verify_seconds.estimate(num_rows)]
        for num_drafts in range(1, int(limits.max()) + 1):
            num_drafting = int(np.count_nonzero(limits >= num_drafts))
            is_right *= self.outcomes.match_rate
            num_tokens += num_drafting * is_right
            num_rows += num_drafting
            verify = self.verify_seconds.estimate(num_rows)
            rates.append(num_tokens / (num_drafts * draft_step + verify))
        return rates

    def _probe(self, best: int, max_drafts: int) -> int:
        """Now and then, measure a choice not taken: acceptance and times change.

        Beside drafting these are no drafts, one less and one more, in turn. Where nothing is
        drafted it is one draft, and again while the probes' drafts are right.
        """
        self._steps_to_probe -= 1
        goes_on = self._is_probe and best == 0 and self.outcomes.all_matched
        self._is_probe = self._steps_to_probe <= 0 or goes_on
        if not self._is_probe:
            return best
        if not goes_on:
            self._probe_interval = min(2 * self._probe_interval, LAST_PROBE)
            self._steps_to_probe = self._probe_interval
            self._num_probes += 1
        if best == 0:
            return 1
        return min((0, best - 1, best + 1)[self._num_probes % 3], max_drafts)
