"""How often each exit would have drafted the token that a step emits; no vLLM."""

from __future__ import annotations

from collections.abc import Iterable

import torch


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
