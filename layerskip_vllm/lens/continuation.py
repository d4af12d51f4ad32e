"""Greedy decoding of one prompt by the full model, as vLLM does it at temperature 0."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Continuation:
    """What the model generates after a prompt."""

    token_ids: tuple[int, ...]  # the continuation, then tokens beyond its stop
    num_new_tokens: int  # in the continuation, stop token included


def continue_greedily(
    model: PreTrainedModel,
    prompt: Sequence[int],
    max_tokens: int,
    num_beyond: int,
    stop_ids: Set[int],
) -> Continuation:
    """Decode up to a stop token and `num_beyond` tokens more, `max_tokens` at most.

    The last cycle of a request drafts beyond its stop token, and vLLM counts those drafts; hence
    the tokens beyond. `model.generate` would stop there, and would apply penalties from the
    checkpoint's generation config.
    """
    token_ids: list[int] = []
    num_new_tokens = max_tokens
    next_ids, cache = torch.tensor([list(prompt)], device=model.device), None
    while len(token_ids) < min(num_new_tokens + num_beyond, max_tokens):
        output = model(next_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        next_ids, cache = output.logits[:, -1].argmax(dim=-1, keepdim=True), output.past_key_values
        token_ids.append(int(next_ids))
        if token_ids[-1] in stop_ids:
            num_new_tokens = min(num_new_tokens, len(token_ids))
    return Continuation(tuple(token_ids), num_new_tokens)
