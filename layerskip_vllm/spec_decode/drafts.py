"""What a propose step yields, and what became of it one step later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch


@dataclass(frozen=True)
class Outcomes:
    """Drafts whose outcome a step has told, over all requests."""

    leads: np.ndarray  # [num_reached], float
    is_match: np.ndarray  # [num_reached], bool: whether the target's token is the same


class DraftChoice(NamedTuple):
    """What one draft step says: the next draft of each request."""

    token_ids: torch.Tensor  # [num_drafting], int64
    leads: torch.Tensor | None = None  # [num_drafting]: best logit over second best
    sampling_probs: torch.Tensor | None = None  # [num_drafting, vocab_size], float32; None: greedy


class DraftReach:
    """How far each request drafts, as it turns out step by step."""

    def __init__(self, num_drafts: np.ndarray) -> None:
        self.num_drafted = num_drafts.copy()
        """[num_drafting]: drafts that count."""
        self.num_submitted = num_drafts.copy()
        """[num_drafting]: those that are to be verified."""

    def stop(self, step: int, submits: np.ndarray, goes_on: np.ndarray) -> None:
        """Let requests end with the draft of step `step`; both are [num_drafting], bool."""
        ends = ~goes_on & (self.num_drafted > step)
        self.num_drafted[ends] = step + 1
        self.num_submitted[ends] = step + submits[ends]

    def ends_with(self, step: int) -> bool:
        """Whether no request drafts after this step."""
        return bool((self.num_drafted <= step + 1).all())


@dataclass(frozen=True)
class Drafts:
    """The drafts of one propose step, K' steps long; row r counts up to `num_drafted[r]`.

    The last draft of a row may have been *cut off*: drafted, but not submitted to verification.
    """

    req_ids: Sequence[str]  # [num_drafting]
    start_positions: np.ndarray  # [num_drafting], int64, n: position of the token before the drafts
    token_ids: np.ndarray  # [num_drafting, K'], int64
    leads: np.ndarray  # [num_drafting, K'], float; 0 where nobody asked for them
    num_drafted: np.ndarray  # [num_drafting], int64, in [1, K']
    num_submitted: np.ndarray  # [num_drafting], int64, num_drafted or one less
    sampling_probs: torch.Tensor | None = None  # [num_drafting, K', vocab_size], float32; or greedy

    @classmethod
    def of_steps(
        cls,
        req_ids: Sequence[str],
        start_positions: np.ndarray,
        choices: Sequence[DraftChoice],
        reach: DraftReach,
    ) -> Drafts:
        """Put the steps side by side. Waits for the device."""
        token_ids = torch.stack([choice.token_ids for choice in choices], dim=1).cpu().numpy()
        leads = [c.leads for c in choices if c.leads is not None]
        sampling_probs = [c.sampling_probs for c in choices if c.sampling_probs is not None]
        return cls(
            req_ids,
            start_positions,
            token_ids,
            torch.stack(leads, dim=1).float().cpu().numpy() if leads else np.zeros(token_ids.shape),
            reach.num_drafted,
            reach.num_submitted,
            torch.stack(sampling_probs, dim=1) if sampling_probs else None,
        )

    def submitted(self, row: int) -> list[int]:
        """Token ids that request `row` wants verified."""
        return self.token_ids[row, : self.num_submitted[row]].tolist()

    def outcomes(
        self,
        req_ids: Sequence[str],  # [num_reqs], of the step that verified
        num_computed: np.ndarray,  # [num_reqs], before that step
        sampled_token_ids: np.ndarray,  # [num_reqs, *], what it sampled, -1 beyond
    ) -> Outcomes:
        """Compare the drafts with what the target said in their place.

        A step samples one token more than it accepts, so the first draft that fails is told, and
        where all that were submitted are accepted, one that was cut off is told as well.
        """
        row_of = {req_id: row for row, req_id in enumerate(req_ids)}
        rows = np.array([row_of.get(req_id, -1) for req_id in self.req_ids], np.int64)
        stands = (rows >= 0) & (num_computed[rows] == self.start_positions)
        width = self.token_ids.shape[1]
        said = np.full((len(rows), width), -1, np.int64)
        some = sampled_token_ids[rows][:, :width]
        said[:, : some.shape[1]] = some
        step = np.arange(width)
        is_reached = stands[:, None] & (said >= 0) & (step < self.num_drafted[:, None])
        return Outcomes(
            leads=self.leads[is_reached],
            is_match=(said == self.token_ids)[is_reached],
        )
