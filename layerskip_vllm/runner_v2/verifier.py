"""Sample each row as plain decoding would, and keep the drafts that are the sampled tokens.

Step 3 of the cycle, for drafts that are chosen, not drawn. vLLM's sampler keys its noise by a
request's seed and the position, so each row yields the token that plain decoding would have there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.worker.gpu.sample.logprob import compute_topk_scores
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler

if TYPE_CHECKING:
    import numpy as np
    from vllm.v1.outputs import LogprobsTensors
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.sample.output import SamplerOutput


class Verifier(RejectionSampler):
    """vLLM's rejection sampler for drawn drafts, and plain sampling for chosen ones.

    A request with m drafts has m + 1 rows of logits: after its last token, and after each draft.
    """

    _logprobs_dims: tuple[int, int] | None = None
    """Of the batch: top logprobs, and tokens whose logprobs a request names; None for neither."""
    _slots: torch.Tensor
    """[num_rows], int32: the request of each row that was verified last."""

    def __call__(
        self,
        logits: torch.Tensor,  # [num_rows, vocab_size]
        input_batch: InputBatch,
        *args: torch.Tensor | None,
    ) -> SamplerOutput:
        """Verify as the host does, which may do so in several parts."""
        self._logprobs_dims = self.sampler.get_logprobs_dims(input_batch.idx_mapping_np)
        return super().__call__(logits, input_batch, *args)

    def _verify(
        self,
        logits: torch.Tensor,  # [num_rows, vocab_size]
        draft_logits: torch.Tensor | None,
        *of_batch: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        (
            draft_sampled,  # [num_rows]: the token before each row
            pos,  # [num_rows]
            cu_num_logits,  # [num_reqs + 1]
            idx_mapping,
            idx_mapping_np,
            self._slots,
            expanded_local_pos,
            seq_lens_upper_bound_np,
            verify_draft_sampled,  # [num_rows]: -1 for drafts that may not be accepted
        ) = of_batch
        if draft_logits is not None:
            return super()._verify(logits, draft_logits, *of_batch)
        sampled, processed_logits = self.sampler.sample(
            logits,
            self._slots,
            idx_mapping,
            idx_mapping_np,
            pos,
            draft_sampled,
            expanded_local_pos,
            seq_lens_upper_bound_np,
            return_logprobs=self._logprobs_dims is not None,
        )
        tokens, num_sampled = first_tokens(
            sampled, verify_draft_sampled, cu_num_logits, self.num_speculative_steps + 1
        )
        return processed_logits, tokens, num_sampled

    def _get_logprobs_tensors(
        self,
        sampled: torch.Tensor,  # [num_reqs, K + 1]
        num_sampled: torch.Tensor,  # [num_reqs]
        logits: torch.Tensor,  # [num_rows, vocab_size]
        cu_num_logits: torch.Tensor,  # [num_reqs + 1]
        cu_num_logits_np: np.ndarray,
        max_num_logprobs: int,
    ) -> LogprobsTensors | None:
        """Gather as the host does; with `logprob_token_ids`, as its plain sampler does."""
        num_logprobs, num_token_ids = self._logprobs_dims or (0, 0)
        if num_token_ids == 0:
            return super()._get_logprobs_tensors(
                sampled, num_sampled, logits, cu_num_logits, cu_num_logits_np, max_num_logprobs
            )
        rows = torch.arange(len(logits), device=logits.device)
        req_indices = torch.bucketize(rows, cu_num_logits[1:], right=True)
        in_request = rows - cu_num_logits[req_indices]
        tokens = sampled[req_indices, in_request]
        # What comes after a request's last token is not output.
        tokens = tokens.masked_fill(in_request >= num_sampled[req_indices], 0)
        return compute_topk_scores(
            logits,
            num_logprobs,
            tokens,
            cu_num_logits_np.tolist(),
            logprob_token_ids_state=self.sampler.logprob_token_ids_state,
            expanded_idx_mapping=self._slots,
            max_per_req_token_ids=num_token_ids,
            logits_mode=self.sampler.logprobs_mode in ("raw_logits", "processed_logits"),
        )


def first_tokens(
    sampled: torch.Tensor,  # [num_rows], int64
    tokens_before: torch.Tensor,  # [num_rows]: last token, drafts; -1 for an invalid one
    cu_num_rows: torch.Tensor,  # [num_reqs + 1]
    max_num_rows: int,  # of a request
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep each request's sampled tokens up to the first that is not the draft.

    Returns:
        (token_ids, num_sampled), [num_reqs, max_num_rows], int64, and [num_reqs], int32. What comes
        after a request's last token has no meaning. Nothing is copied to the host.
    """
    ends = cu_num_rows[1:, None]
    rows = cu_num_rows[:-1, None] + torch.arange(max_num_rows, device=sampled.device)
    has_draft = rows + 1 < ends
    rows = torch.minimum(rows, ends - 1)
    drafts = tokens_before[torch.minimum(rows + 1, ends - 1)]
    token_ids = sampled[rows]
    is_accepted = ((token_ids == drafts) & has_draft).cumprod(dim=1)
    return token_ids, 1 + is_accepted.sum(dim=1, dtype=torch.int32)
