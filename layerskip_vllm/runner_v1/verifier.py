"""Sample each row as plain decoding would, and keep the drafts that are the sampled tokens.

Step 3 of the cycle, for drafts that are chosen, not drawn. Rejection sampling accepts such a draft d
with probability p(d), and so does this. But the tokens are those of plain decoding with the same
random numbers, so a seeded request's output does not depend on drafts.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence
from vllm.v1.outputs import LogprobsTensors, SamplerOutput

if TYPE_CHECKING:
    import numpy as np
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.sample.sampler import Sampler

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
    drafts: list[list[int]],  # [num_reqs]
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
