"""How often each exit would have drafted the token that a step emits; no vLLM."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

import torch

from layerskip_vllm.config import Exit


def top_tokens_of_exits(
    top_tokens: Callable[[torch.Tensor, bool], torch.Tensor],
    normed_states: Sequence[torch.Tensor],  # after each exit layer [num_rows, hidden_size]
    exits: Sequence[Exit],
    together: bool,
) -> list[torch.Tensor]:
    """What each exit drafts after each row: [num_rows], int64, of each.

    Args:
        top_tokens: (states, uses_lm_head) -> what is drafted after each row.
        normed_states: Ready for the head.
        exits: Those with the same head next to each other.
        together: Whether these share a call: it takes the time to read the head's weights. Where
            rows have adapters they cannot.
    """
    drafted: list[torch.Tensor] = []
    for uses_lm_head, sharing in groupby(exits, key=lambda exit_: exit_.uses_lm_head):
        states = [normed_states[exit_.layer_index] for exit_ in sharing]
        if together:
            drafted += top_tokens(torch.cat(states), uses_lm_head).chunk(len(states))
        else:
            drafted += [top_tokens(each, uses_lm_head) for each in states]
    return drafted


def count_matches(
    top_tokens: Iterable[torch.Tensor],  # for each exit [num_rows], what it drafts after each row
    emitted: torch.Tensor,  # [num_rows], what the step emits after it; -1: nothing
) -> torch.Tensor:
    """Count rows with a token, and those in which an exit has it: [num_exits, 2], int64.

    Each emitted token has one row. Its context is the emitted text, so a row says whether a draft
    would match if the drafts before it did.
    """
    is_reached = emitted >= 0
    num_reached = is_reached.sum()
    counts = [
        torch.stack((num_reached, ((tokens == emitted) & is_reached).sum()))
        for tokens in top_tokens
    ]
    return torch.stack(counts)
