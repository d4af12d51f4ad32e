"""Where each request stops drafting: as soon as one more draft is not worth its time.

DEL (arXiv 2504.05598) cuts drafts off whose probability lies below a threshold learnt online. What
is learnt here is how often a draft of a given *lead* is right: by how much its logit exceeds the
second best. Together with what drafts cost and what tokens are worth that decides. The lead tells
right drafts from wrong ones better than the probability does, and needs no softmax.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BINS_PER_UNIT, MAX_LEAD = 2, 8
"""Leads are told apart in steps of a half; from 8 on they are one."""

DECAY_PER_DRAFT = 0.98
"""Weight that a bin's past keeps with each new draft in it."""

BIN_TRIALS = 2.0
"""Drafts for which the average rate counts in each bin."""

PRIOR_MATCH_RATE, PRIOR_TRIALS = 0.7, 4.0
"""What is believed before the first drafts: enough to try, and little enough to unlearn at once."""


class MatchRates:
    """How often a draft is what the target says, by the draft's lead."""

    def __init__(self) -> None:
        num_bins = BINS_PER_UNIT * MAX_LEAD + 1
        self._trials, self._matches = np.zeros(num_bins), np.zeros(num_bins)

    @property
    def mean(self) -> float:
        """Over all drafts, in [0, 1]."""
        matches = self._matches.sum() + PRIOR_TRIALS * PRIOR_MATCH_RATE
        return float(matches / (self._trials.sum() + PRIOR_TRIALS))

    def of(self, leads: np.ndarray) -> np.ndarray:
        """The rate for each lead, in [0, 1]."""
        bins = _bin_of(leads)
        return (self._matches[bins] + BIN_TRIALS * self.mean) / (self._trials[bins] + BIN_TRIALS)

    def observe(
        self,
        leads: np.ndarray,  # [num_drafts], float
        is_match: np.ndarray,  # [num_drafts], bool: whether the target said the same
    ) -> None:
        """Add drafts whose outcome is known."""
        bins, num_bins = _bin_of(leads), len(self._trials)
        trials = np.bincount(bins, minlength=num_bins)
        decay = DECAY_PER_DRAFT**trials
        self._trials = self._trials * decay + trials
        self._matches = self._matches * decay + np.bincount(bins, is_match, minlength=num_bins)


def _bin_of(leads: np.ndarray) -> np.ndarray:
    return np.rint(BINS_PER_UNIT * leads.clip(0, MAX_LEAD)).astype(np.int64)


class Prices(NamedTuple):
    """Seconds that decide about one more draft."""

    token: float  # that one more output token saves
    draft_step: float  # of one draft step, whole batch
    verify_row: float  # that one more row adds to the verification


class StopRule:
    """Decides, draft step by draft step, who submits and who goes on; for one propose step.

    A draft is worth the chance that it and all before it are right. Optimal stopping for the most
    tokens per second: go on while what the next draft promises exceeds what it costs.
    """

    def __init__(self, rates: MatchRates, prices: Prices, batch_size: int) -> None:
        self._rates, self._prices = rates, prices
        self._chance = np.ones(batch_size)  # that all drafts so far are right: it never rises

    def after(self, leads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Hear of a draft step.

        Args:
            leads: [batch_size], the drafts'.

        Returns:
            (submits, goes_on), bool [batch_size]: whether the draft is to be verified, and whether
            the request drafts further.
        """
        prices = self._prices
        self._chance *= self._rates.of(leads)
        submits = self._chance * prices.token >= prices.verify_row
        gain = self._chance * self._rates.mean * prices.token - prices.verify_row
        goes_on = gain > 0
        # A step costs the same for one request as for many.
        goes_on &= gain[goes_on].sum() > prices.draft_step
        return submits, goes_on
