"""How often each exit would have drafted the token that a step emits; no vLLM."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

import torch

from layerskip_vllm.config import Exit

MAX_ROWS = 32
"""Rows of a step that are counted: enough to end a change of the text in one step, and few enough
to cost the head's weights rather than arithmetic."""


class ExitMatches:
    """Counts for some rows of a step, others each time."""

    def __init__(
        self,
        top_tokens: Callable[[torch.Tensor, bool], torch.Tensor],
        exits: Sequence[Exit],
        has_adapters: bool = False,
    ) -> None:
        """Know how to draft.

        Args:
            top_tokens: (normed states, uses_lm_head) -> what is drafted after each row, [num_rows].
            exits: Those with the same head next to each other. They share a call, which takes the
                time to read the head's weights.
            has_adapters: Whether the LM head knows each row of the step by its adapter. Then all
                rows are counted, exit by exit.
        """
        self._top_tokens, self._exits, self._has_adapters = top_tokens, exits, has_adapters
        self._first_row = 0

    def count(
        self,
        normed_states: Sequence[torch.Tensor],  # after each exit layer [num_rows, hidden_size]
        emitted: torch.Tensor,  # [num_rows], what the step emits after each row; -1: nothing
    ) -> torch.Tensor:
        """Count [reached, matched] of each exit, as `count_matches` does."""
        if len(emitted) > MAX_ROWS and not self._has_adapters:
            start = self._first_row % (len(emitted) - MAX_ROWS + 1)
            self._first_row += MAX_ROWS
            emitted = emitted[start : start + MAX_ROWS]
            normed_states = [states[start : start + MAX_ROWS] for states in normed_states]
        return count_matches(self._drafted(normed_states), emitted)

    def _drafted(self, normed_states: Sequence[torch.Tensor]) -> Iterable[torch.Tensor]:
        for uses_lm_head, sharing in groupby(self._exits, key=lambda exit_: exit_.uses_lm_head):
            states = [normed_states[exit_.layer_index] for exit_ in sharing]
            if self._has_adapters:
                yield from (self._top_tokens(each, uses_lm_head) for each in states)
            else:
                yield from self._top_tokens(torch.cat(states), uses_lm_head).chunk(len(states))


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
