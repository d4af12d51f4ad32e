"""Which drafts are accepted, and which tokens come in the place of others: step 3 of the cycle.

Drafts that are drawn go through vLLM's rejection sampling. For drafts that are chosen, each row is
sampled as plain decoding would, and the drafts that are the sampled tokens are kept. Rejection
sampling accepts such a draft d with probability p(d), and so does this. But the tokens are those of
plain decoding with the same random numbers: a seeded request's output does not depend on drafts.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence
from vllm.config.model import PROCESSED_LOGPROBS_MODES
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.rejection_sampler import rejection_sample
from vllm.v1.sample.sampler import Sampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

    from layerskip_vllm.runner_v1.sampled_rows import RewindableGenerators, SampledRows

REJECTED = -1
"""vLLM's PLACEHOLDER_TOKEN_ID."""


def sample_and_compare(
    sampler: Sampler,
    logits: torch.Tensor,  # [num_rows, vocab_size]
    rows: SampledRows,
    sampling_metadata: SamplingMetadata,  # of the requests
    processors: LogitsProcessors,  # of the rows
    is_discarded: np.ndarray,  # [num_reqs], bool
) -> SamplerOutput:
    """Sample all rows by vLLM's plain sampler.

    Returns:
        `sampled_token_ids`, [num_reqs, most drafts + 1], int32, -1 after the first that is not the
        draft; logprobs of as many rows, request by request.
    """
    generators = rows.generators(sampling_metadata.generators, is_discarded)
    metadata = dataclasses.replace(
        rows.metadata(sampling_metadata), generators=generators, logitsprocs=processors
    )
    # A row without drafts is a bonus token's: that is what thinking budgets must know.
    sampled = sampler(logits, metadata, predict_bonus_token=not rows.have_drafts)
    if not rows.have_drafts:
        return sampled
    by_request = torch.from_numpy(rows.by_request()).to(logits.device)
    output = first_tokens(sampled.sampled_token_ids[by_request, 0], rows.drafts)
    if generators:
        _take_back(generators, sampling_metadata, rows, output)
    logprobs = sampled.logprobs_tensors
    if logprobs is not None:
        logprobs = LogprobsTensors(*(values[by_request.flatten()] for values in logprobs[:3]))
    return SamplerOutput(output, logprobs)


def first_tokens(
    sampled: torch.Tensor,  # [num_reqs, most drafts + 1], int32
    drafts: Sequence[list[int]],  # [num_reqs]
) -> torch.Tensor:
    """Keep each request's sampled tokens up to the first that is not the draft: -1 after it."""
    padded = pad_sequence(
        [torch.tensor(draft, dtype=sampled.dtype) for draft in drafts], True, REJECTED
    )
    is_accepted = (sampled[:, :-1] == padded.to(sampled.device)).cumprod(dim=1).bool()
    output = sampled.clone()
    output[:, 1:].masked_fill_(~is_accepted, REJECTED)
    return output


def _take_back(
    generators: RewindableGenerators,
    sampling_metadata: SamplingMetadata,
    rows: SampledRows,
    output: torch.Tensor,  # [num_reqs, most drafts + 1]
) -> None:
    """Undo the draws of seeded requests after their last tokens."""
    num_sampled = (output != REJECTED).sum(dim=1).tolist()
    for req_index in sampling_metadata.generators:
        for row in rows.of_request(req_index)[num_sampled[req_index] :][:1]:
            generators.take_back(row)


def reject_drawn(
    sampler: Sampler,
    logits: torch.Tensor,  # [num_rows, vocab_size]
    rows: SampledRows,
    sampling_metadata: SamplingMetadata,  # of the requests, not all of them greedy
    processors: LogitsProcessors,  # of the rows
    spec_decode_metadata: SpecDecodeMetadata,
    draft_probs: torch.Tensor,  # [num_drafts, vocab_size], float32
) -> SamplerOutput:
    """Verify drafts that were drawn, by vLLM's rejection sampling.

    The target's distribution is that of the plain sampler, with every option of a request.

    Returns:
        What `sample_and_compare` returns.
    """
    last = rows.starts + rows.num_rows - 1
    generators = {int(last[i]): g for i, g in sampling_metadata.generators.items()}
    metadata = dataclasses.replace(
        rows.metadata(sampling_metadata), generators=generators, logitsprocs=processors
    )
    raw_logits = logits.to(torch.float32)
    target_logits = sampler.apply_logits_processors(raw_logits.clone(), metadata, False)
    # In this mode a sampler returns the logits from which it has sampled.
    revealing = Sampler("processed_logits", sampler.use_fp64_gumbel)
    sampled, target_logits = revealing.sample(target_logits, metadata)
    output = rejection_sample(
        spec_decode_metadata.draft_token_ids,
        spec_decode_metadata.num_draft_tokens,
        spec_decode_metadata.max_spec_len,
        spec_decode_metadata.cu_num_draft_tokens,
        draft_probs,
        target_logits[spec_decode_metadata.target_logits_indices],
        sampled[spec_decode_metadata.bonus_logits_indices, None].to(torch.int32),
        sampling_metadata,
        use_fp64_gumbel=sampler.use_fp64_gumbel,
    )
    is_processed = sampler.logprobs_mode in PROCESSED_LOGPROBS_MODES
    of_logits = target_logits if is_processed else raw_logits
    return SamplerOutput(output, _logprobs(sampler, of_logits, rows, sampling_metadata, output))


def _logprobs(
    sampler: Sampler,
    logits: torch.Tensor,  # [num_rows, vocab_size], float32
    rows: SampledRows,
    sampling_metadata: SamplingMetadata,
    output: torch.Tensor,  # [num_reqs, most drafts + 1]
) -> LogprobsTensors | None:
    """Gather the logprobs of the output as the plain sampler does, request by request."""
    num_logprobs, named = sampling_metadata.max_num_logprobs, sampling_metadata.logprob_token_ids
    if num_logprobs is None and not named:
        return None
    scores = logits[torch.from_numpy(rows.by_request().flatten()).to(logits.device)]
    if sampler.logprobs_mode.endswith("logprobs"):
        scores = sampler.compute_logprobs(scores)
    tokens = output.flatten().clamp(min=0).to(torch.int64)  # vLLM drops those of rejected drafts
    if not named:
        return sampler.gather_logprobs(scores, num_logprobs, tokens)
    width = output.shape[1]
    of_rows = {i * width + k: token_ids for i, token_ids in named.items() for k in range(width)}
    return sampler.gather_specific_token_logprobs(scores, of_rows, tokens)
