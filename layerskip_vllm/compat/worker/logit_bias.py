"""`logit_bias` applies where drafts are verified.

Target: vllm.v1.sample.rejection_sampler:RejectionSampler.apply_logits_processors,
    vllm.v1.worker.gpu_model_runner:build_logitsprocs
Reason: vLLM's V1 rejection sampler leaves `logit_bias` out, so vLLM does not even build its
    processor under speculation.
How: Calls both originals. Under self-speculation, adds vLLM's own processor to those of the batch;
    it serves the token after the last draft, which comes from vLLM's plain sampler. For draft
    tokens, adds the biases before the penalties scale the logits, in the order of vLLM's sampler.
Upstream: 0005-logit-bias-with-drafts.patch
May go: When the oldest supported vLLM applies `logit_bias` at draft positions.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessors
from vllm.v1.sample.logits_processor.builtin import LogitBiasLogitsProcessor
from vllm.v1.sample.rejection_sampler import RejectionSampler
from vllm.v1.worker import gpu_model_runner

from layerskip_vllm.compat.wrapping import wrap

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm.config import VllmConfig
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata


def is_needed() -> bool:
    """By behaviour: the logits of a biased request's draft stay as they are."""
    bias = LogitBiasLogitsProcessor(None, torch.device("cpu"), False)
    bias.update_state(BatchUpdate(1, [], [(0, SamplingParams(logit_bias={0: 1.0}), None, [])], []))
    nothing_else = SimpleNamespace(
        logitsprocs=LogitsProcessors([bias]),
        no_penalties=True,
        output_token_ids=[[]],
        bad_words_token_ids={},
        allowed_token_ids_mask=None,
        thinking_budget_state_holder=None,
    )
    sampler, metadata = object.__new__(RejectionSampler), SimpleNamespace(num_draft_tokens=[1])
    logits = RejectionSampler.apply_logits_processors(
        sampler, torch.zeros(1, 1), nothing_else, metadata
    )
    return not logits.any()


def install() -> None:
    """Wrap the making of a batch's processors, and their application to drafts."""
    wrap(gpu_model_runner, "build_logitsprocs", _build_logitsprocs)
    wrap(RejectionSampler, "apply_logits_processors", _apply_logits_processors)


def _build_logitsprocs(
    original: Callable[..., LogitsProcessors],
    vllm_config: VllmConfig,
    device: torch.device,
    is_pin_memory: bool,
    *args: object,
    **kwargs: object,
) -> LogitsProcessors:
    processors = original(vllm_config, device, is_pin_memory, *args, **kwargs)
    if hasattr(vllm_config.speculative_config, "layerskip"):
        bias = LogitBiasLogitsProcessor(vllm_config, device, is_pin_memory)
        processors.non_argmax_invariant.append(bias)
    return processors


def _apply_logits_processors(
    original: Callable[..., torch.Tensor],
    sampler: RejectionSampler,
    logits: torch.Tensor,  # [num_draft_tokens, vocab_size], float32; changed in place
    sampling_metadata: SamplingMetadata,
    metadata: SpecDecodeMetadata,
) -> torch.Tensor:
    for processor in sampling_metadata.logitsprocs.non_argmax_invariant:
        # Of no other speculative method's requests: vLLM refuses their biases.
        if isinstance(processor, LogitBiasLogitsProcessor) and processor.biases:
            num_draft_tokens = torch.tensor(metadata.num_draft_tokens, device=logits.device)
            reqs, token_ids = processor.logits_slice
            add_logit_bias(logits, num_draft_tokens, reqs, token_ids, processor.bias_tensor)
    return original(sampler, logits, sampling_metadata, metadata)


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
