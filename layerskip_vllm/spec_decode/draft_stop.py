"""Where a request stops drafting: below a probability learnt online (DEL, arXiv 2504.05598)."""

from __future__ import annotations

import numpy as np

DECAY_PER_STEP = 0.95
"""Weight that past probabilities keep in each step (DEL)."""


class StopThreshold:
    """The draft probability below which a draft is cut off.

    It lies halfway between the average probability of drafts that the target said too and of those
    that it did not. Both averages hear of drafts that were cut as well, where the target's own next
    token tells what would have become of them: else only drafts above the threshold would be seen,
    and it could only rise.
    """

    def __init__(self) -> None:
        self._sums = np.zeros(2)  # of probabilities: not matched, matched
        self._counts = np.zeros(2)

    @property
    def value(self) -> float:
        """In [0, 1]; 0, which cuts nothing, until drafts of both kinds were seen."""
        if not self._counts.all():
            return 0.0
        return float((self._sums / self._counts).mean())

    def observe(
        self,
        probs: np.ndarray,  # [num_drafts], float: the draft's own
        is_match: np.ndarray,  # [num_drafts], bool: whether the target said the same
    ) -> None:
        """Add drafts whose outcome is known."""
        if len(probs) == 0:
            return
        kinds = is_match.astype(np.int64)
        self._sums = self._sums * DECAY_PER_STEP + np.bincount(kinds, probs, minlength=2)
        self._counts = self._counts * DECAY_PER_STEP + np.bincount(kinds, minlength=2)
