"""What a propose step yields, and what became of it one step later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch


class DraftChoice(NamedTuple):
    """What one draft step says: the next draft of each request."""

    token_ids: torch.Tensor  # [num_drafting], int64
    sampling_probs: torch.Tensor | None = None  # [num_drafting, vocab_size], float32; None: greedy


@dataclass(frozen=True)
class Drafts:
    """The drafts of one propose step, K' steps long; row r counts up to `num_drafted[r]`."""

    req_ids: Sequence[str]  # [num_drafting]
    start_positions: np.ndarray  # [num_drafting], int64, n: position of the token before the drafts
    token_ids: np.ndarray  # [num_drafting, K'], int64
    num_drafted: np.ndarray  # [num_drafting], int64, in [1, K']
    sampling_probs: torch.Tensor | None = None  # [num_drafting, K', vocab_size], float32; or greedy

    @classmethod
    def of_steps(
        cls,
        req_ids: Sequence[str],
        start_positions: np.ndarray,
        choices: Sequence[DraftChoice],
        num_drafted: np.ndarray,
    ) -> Drafts:
        """Put the steps side by side. Waits for the device."""
        token_ids = torch.stack([choice.token_ids for choice in choices], dim=1).cpu().numpy()
        sampling_probs = [c.sampling_probs for c in choices if c.sampling_probs is not None]
        return cls(
            req_ids,
            start_positions,
            token_ids,
            num_drafted,
            torch.stack(sampling_probs, dim=1) if sampling_probs else None,
        )

    def submitted(self, row: int) -> list[int]:
        """Token ids that request `row` wants verified."""
        return self.token_ids[row, : self.num_drafted[row]].tolist()

    def outcomes(
        self,
        req_ids: Sequence[str],  # [num_reqs], of the step that verified
        num_computed: np.ndarray,  # [num_reqs], before that step
        sampled_token_ids: np.ndarray,  # [num_reqs, *], what it sampled, -1 beyond
    ) -> np.ndarray:
        """Whether each draft that was reached is what the target said in its place, [*] bool.

        A step samples one token more than it accepts, so the first draft that fails is reached.
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
        return (said == self.token_ids)[is_reached]
