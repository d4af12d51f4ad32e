"""What vLLM's V1 rejection sampler leaves out, and refuses requests for: `logit_bias`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vllm.v1.sample.logits_processor.builtin import LogitBiasLogitsProcessor
from vllm.v1.sample.rejection_sampler import RejectionSampler

if TYPE_CHECKING:
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata


def biases_drafts_itself() -> bool:
    """Whether this vLLM's rejection sampler applies `logit_bias` (patches/0005)."""
    return hasattr(LogitBiasLogitsProcessor, "apply_with_spec_decode")


class LayerSkipRejectionSampler(RejectionSampler):
    """vLLM's rejection sampler, with `logit_bias` applied where drafts are verified.

    The token after the last draft comes from vLLM's plain sampler, which applies it by itself.
    """

    def apply_logits_processors(
        self,
        logits: torch.Tensor,  # [num_draft_tokens, vocab_size], float32; changed in place
        sampling_metadata: SamplingMetadata,
        metadata: SpecDecodeMetadata,
    ) -> torch.Tensor:
        """Add the biases before the penalties scale the logits, in the order of vLLM's sampler."""
        for processor in sampling_metadata.logitsprocs.non_argmax_invariant:
            if isinstance(processor, LogitBiasLogitsProcessor) and processor.biases:
                num_draft_tokens = torch.tensor(metadata.num_draft_tokens, device=logits.device)
                req_indices, token_ids = processor.logits_slice
                add_logit_bias(
                    logits, num_draft_tokens, req_indices, token_ids, processor.bias_tensor
                )
        return super().apply_logits_processors(logits, sampling_metadata, metadata)


def add_logit_bias(
    logits: torch.Tensor,  # [num_draft_tokens, vocab_size]; changed in place
    num_draft_tokens: torch.Tensor,  # [num_reqs], int64
    req_indices: torch.Tensor,  # [num_biases], int32
    token_ids: torch.Tensor,  # [num_biases], int32
    biases: torch.Tensor,  # [num_biases], float32
) -> None:
    """Add each request's biases to the logits of all its draft positions."""
    counts = num_draft_tokens[req_indices]
    first_rows = (num_draft_tokens.cumsum(0) - num_draft_tokens)[req_indices]
    starts = counts.cumsum(0) - counts
    num_rows = int(counts.sum())
    in_request = torch.arange(num_rows, device=logits.device) - starts.repeat_interleave(counts)
    rows = first_rows.repeat_interleave(counts) + in_request
    columns = token_ids.to(torch.int64).repeat_interleave(counts)
    logits.index_put_((rows, columns), biases.repeat_interleave(counts), accumulate=True)
