"""How many tokens to draft next: K from measured times and the present acceptance.

What pays depends on the checkpoint, the text, the batch size and the machine, and all but the last
change while the server runs. The controller knows none of them beforehand: it chooses the K, 0
included, that promises the most tokens per second by what it has measured so far.
"""

from __future__ import annotations

from collections import deque

import numpy as np

TIMES_KEPT = 8
"""Recent times per bucket of rows. Their lower quartile counts: disturbances only add time."""

BUCKETS_PER_DOUBLING = 4
"""Row counts within about 19 % of each other share a bucket."""

PRIOR_MATCH_RATE, PRIOR_TRIALS = 0.7, 4.0
"""What is believed before the first drafts: enough to try, and little enough to unlearn at once."""

DECAY_PER_STEP = 0.98
"""Weight that past outcomes keep in each step that has new ones."""

MIN_GAIN = 1.02
"""Drafting must promise this much more than plain decoding, or noise would decide."""

FIRST_PROBE, LAST_PROBE = 8, 128
"""Steps between two probes: doubled from the first to the last."""


class RowTimes:
    """Seconds that a forward takes, by its number of rows."""

    def __init__(self) -> None:
        self._samples: dict[int, deque[float]] = {}
        self._buckets = np.zeros(0, np.int64)  # ascending
        self._seconds = np.zeros(0)

    def observe(self, num_rows: int, seconds: float) -> None:
        """Add a measured time."""
        bucket = int(_bucket_of(num_rows))
        self._samples.setdefault(bucket, deque(maxlen=TIMES_KEPT)).append(seconds)
        buckets = sorted(self._samples)
        self._buckets = np.array(buckets)
        times = (sorted(self._samples[bucket]) for bucket in buckets)
        self._seconds = np.array([some[len(some) // 4] for some in times])

    def estimate(self, num_rows: np.ndarray) -> np.ndarray:
        """Seconds for each number of rows; at least one time must have been observed.

        What was never measured is taken to cost as little as it may: as much as the next smaller
        forward, or below the smallest in proportion. So it is tried, and then it is measured.
        """
        buckets = _bucket_of(num_rows)
        index = np.searchsorted(self._buckets, buckets, side="right") - 1
        smallest = 2.0 ** ((buckets - self._buckets[0]) / BUCKETS_PER_DOUBLING)
        return np.where(index >= 0, 1.0, smallest) * self._seconds[np.maximum(index, 0)]

    def __bool__(self) -> bool:
        return bool(self._samples)


def _bucket_of(num_rows: np.ndarray | float) -> np.ndarray:
    return np.rint(BUCKETS_PER_DOUBLING * np.log2(num_rows)).astype(np.int64)


class DraftOutcomes:
    """How often a draft is what the target says, and how often a request goes on drafting.

    Decayed counts over all requests, the prior among them.
    """

    def __init__(self) -> None:
        self._reached, self._matched = PRIOR_TRIALS, PRIOR_TRIALS * PRIOR_MATCH_RATE
        self._drafted = self._submitted = PRIOR_TRIALS
        self.all_matched = False
        """Whether every draft of the last step that had some was right."""

    def observe(self, *, reached: int, matched: int, drafted: int, submitted: int) -> None:
        """Add one step's outcomes; a step without drafts says nothing.

        Args:
            reached: Drafts whose outcome was told, every draft before them being right.
            matched: Those of them that were submitted and accepted.
            drafted: All drafts.
            submitted: Those of them that were not cut off (`draft_stop.py`).
        """
        if drafted == 0:
            return
        self._reached = self._reached * DECAY_PER_STEP + reached
        self._matched = self._matched * DECAY_PER_STEP + matched
        self._drafted = self._drafted * DECAY_PER_STEP + drafted
        self._submitted = self._submitted * DECAY_PER_STEP + submitted
        self.all_matched = matched == reached > 0

    @property
    def match_rate(self) -> float:
        """Matched of reached, in [0, 1]."""
        return self._matched / self._reached

    @property
    def submit_rate(self) -> float:
        """Submitted of drafted, in [0, 1]."""
        return self._submitted / self._drafted


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

    def choose(self, batch_size: int, max_drafts: int) -> int:
        """K of the next cycle, in [0, max_drafts]; `batch_size` requests would draft."""
        if max_drafts == 0 or not self.draft_seconds or not self.verify_seconds:
            return max_drafts
        rates = self.tokens_per_second(batch_size, max_drafts)
        best = int(rates.argmax())
        if rates[best] < MIN_GAIN * rates[0]:
            best = 0
        return self._probe(best, max_drafts)

    def tokens_per_second(self, batch_size: int, max_drafts: int) -> np.ndarray:
        """What a cycle with K = 0 .. max_drafts promises, all requests together: [max_drafts + 1].

        A request's k-th draft is right only if those before it are, and is made only if none of
        them was cut off. A draft step runs while any request of the batch still drafts.
        """
        step = np.arange(max_drafts + 1)
        num_tokens = np.cumsum(self.outcomes.match_rate**step)
        num_rows = np.cumsum(self.outcomes.submit_rate**step)
        is_running = 1 - (1 - self.outcomes.submit_rate ** np.maximum(step - 1, 0)) ** batch_size
        num_draft_steps = np.cumsum(is_running) - 1
        seconds = self.verify_seconds.estimate(batch_size * num_rows)
        seconds += num_draft_steps * self.draft_seconds.estimate(np.array(batch_size))
        return batch_size * num_tokens / seconds

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
