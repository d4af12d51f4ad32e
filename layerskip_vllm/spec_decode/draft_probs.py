"""The distributions from which drafts were drawn, until their drafts are verified."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import one_hot

if TYPE_CHECKING:
    from layerskip_vllm.spec_decode.draft_batch import DraftBatch


class DraftProbs:
    """Distributions by request.

    A step whose token budget is spent leaves a request out. The request's drafts wait for a later
    step, while others draft. Verified without the probabilities, few of them would be accepted.
    """

    def __init__(self) -> None:
        self._by_request: dict[str, torch.Tensor] = {}
        """[num_drafts, vocab_size], float32, of each request with drafts to verify."""

    def keep(self, batch: DraftBatch) -> None:
        """Keep what a batch has drawn from; nothing where all its drafts are greedy."""
        if batch.sampling_probs is not None:
            rows = zip(batch.req_ids, batch.sampling_probs, batch.num_drafts, strict=False)
            self._by_request |= {req_id: probs[:num_drafts] for req_id, probs, num_drafts in rows}

    def forget(self, req_ids: Iterable[str]) -> None:
        """Drop those of requests that have ended."""
        for req_id in req_ids:
            self._by_request.pop(req_id, None)

    def take(self, req_ids: Sequence[str], drafts: Sequence[list[int]]) -> torch.Tensor | None:
        """Take out those of a step's requests, whose other drafts are lost.

        Args:
            req_ids: [num_reqs], of the step.
            drafts: [num_reqs], what the step verifies.

        Returns:
            [num_drafts in all, vocab_size], float32; None where no draft was drawn. A greedy draft
            was drawn with probability 1.
        """
        if not self._by_request:
            return None
        taken = [self._by_request.pop(req_id, None) for req_id in req_ids]
        # What is left would hold the memory of whole batches.
        self._by_request = {req_id: probs.clone() for req_id, probs in self._by_request.items()}
        verified = [(probs, draft) for probs, draft in zip(taken, drafts, strict=True) if draft]
        like = next((probs for probs, _ in verified if probs is not None), None)
        if like is None:
            return None
        return torch.cat(
            [
                probs[: len(draft)]
                if probs is not None
                else one_hot(torch.tensor(draft), like.shape[1]).to(like)
                for probs, draft in verified
            ]
        )
