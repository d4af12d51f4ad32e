"""How often drafts are right: decayed counts over all requests.

One rate serves the whole batch. In batches of easy and hard requests, rates by request would gain
0.3 % on average, even if they were known exactly (`benchmarks/policy_replay.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

PRIOR_MATCH_RATE, PRIOR_TRIALS = 0.7, 4.0
"""The belief before the first drafts: enough to try, and little enough to unlearn at once."""

DECAY_PER_STEP = 0.98
"""Weight that past outcomes keep in each step that has new ones."""

MAX_TRIALS, HOPED_TRIALS = 256.0, 2.0
"""Most outcomes that count of one exit among several, and right ones that hope adds to them."""

CHANGE, EVIDENCE = 0.3, 6.0
"""A match rate has changed once one that differs by the first is e to the second times as likely
for the latest outcomes."""


class DraftOutcomes:
    """How often a draft is what the target samples in its place, at a single exit."""

    def __init__(self, match_rate: float = PRIOR_MATCH_RATE) -> None:
        self._reached, self._matched = PRIOR_TRIALS, PRIOR_TRIALS * match_rate
        self.all_matched = False
        """Whether every draft of the last step that had some was accepted."""

    def observe(self, num_drafted: Sequence[int], num_accepted: Sequence[int]) -> bool:
        """Add one step's drafts and accepted drafts of each request that had drafts.

        A draft's outcome is known where every draft before it was accepted.

        Returns:
            Whether the match rate has changed, as `add` does.
        """
        if not num_drafted:
            return False
        matched = sum(num_accepted)
        num_failed = sum(a < d for d, a in zip(num_drafted, num_accepted, strict=True))
        self.all_matched = num_failed == 0
        return self.add(matched + num_failed, matched)

    def add(self, reached: int, matched: int) -> bool:
        """Add one step's outcomes."""
        self._reached = self._reached * DECAY_PER_STEP + reached
        self._matched = self._matched * DECAY_PER_STEP + matched
        return False

    @property
    def match_rate(self) -> float:
        """Matched of reached, in [0, 1]."""
        return self._matched / self._reached

    @property
    def hoped_rate(self) -> float:
        """The rate by which to choose."""
        return self.match_rate


class ExitOutcomes(DraftOutcomes):
    """The outcomes of one exit among several.

    An exit that is not in use has outcomes now and then. So the past decays by outcomes, not by
    steps, and after a change only those since count.
    """

    def __init__(self, match_rate: float = PRIOR_MATCH_RATE) -> None:
        super().__init__(match_rate)
        self._lower, self._higher = ChangeTest(), ChangeTest()

    def add(self, reached: int, matched: int) -> bool:
        """Add one step's outcomes, and return whether they show another match rate."""
        rate = min(max(self.match_rate, 0.05), 0.95)
        for test, other in (
            (self._lower, max(rate - CHANGE, 0.02)),
            (self._higher, min(rate + CHANGE, 0.98)),
        ):
            if test.observe(reached, matched, rate, other):
                self._reached, self._matched = test.reached + 1, test.matched + rate
                self._lower, self._higher = ChangeTest(), ChangeTest()
                return True
        kept = min(1.0, max(0.0, MAX_TRIALS - reached) / self._reached)
        self._reached = self._reached * kept + reached
        self._matched = self._matched * kept + matched
        return False

    @property
    def hoped_rate(self) -> float:
        """More than the match rate, the less is known: drafting is the quickest way to know."""
        return (self._matched + HOPED_TRIALS) / (self._reached + HOPED_TRIALS)


class ChangeTest:
    """Page's test for a change of a rate (Biometrika 41, 1954).

    It adds up how much better another rate explains the outcomes, and starts again where it does
    not. What it has added since is the likeliest text after the change.
    """

    def __init__(self) -> None:
        self._score, self.reached, self.matched = 0.0, 0, 0

    def observe(self, reached: int, matched: int, rate: float, other: float) -> bool:
        """Add outcomes, and return whether the other rate is the far likelier one by now."""
        self._score += matched * math.log(other / rate)
        self._score += (reached - matched) * math.log((1 - other) / (1 - rate))
        self.reached += reached
        self.matched += matched
        if self._score <= 0:
            self._score, self.reached, self.matched = 0.0, 0, 0
        return self._score > EVIDENCE
