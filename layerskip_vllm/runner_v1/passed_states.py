"""What each exit makes of the tokens that pass it in one cycle, until a step reads it or the next
cycle begins.
"""

from __future__ import annotations

import numpy as np
import torch


class PassedStates:
    """Normed states of a cycle's tokens at every exit, as the segments return them: no copies.

    Propose passes the exits up to the one that drafts, verify those after it.
    """

    def __init__(self, num_exits: int) -> None:
        self._num_exits = num_exits
        self._drafted: list[list[torch.Tensor]] = []
        self._verified: dict[int, torch.Tensor] = {}

    def start_cycle(self) -> None:
        """Forget the last one's."""
        self._drafted = [[] for _ in range(self._num_exits)]
        self._verified = {}

    def drafted(self, layer_index: int, normed_states: torch.Tensor) -> None:
        """Keep those of the next early step: [num_rows, hidden_size]."""
        self._drafted[layer_index].append(normed_states)

    def verified(self, layer_index: int, normed_states: torch.Tensor) -> None:
        """Keep those of the cycle's verify: [num_tokens, hidden_size]."""
        self._verified[layer_index] = normed_states

    def of_tokens(
        self,
        tokens: np.ndarray,  # [num_rows], int64, among those of the verify
        entries: np.ndarray,  # [num_tokens, 2], row and early step of each
    ) -> list[torch.Tensor]:
        """The states of some tokens: after each exit layer [num_rows, hidden_size]."""
        return [self._at(index, tokens, entries) for index in range(self._num_exits)]

    def _at(self, layer_index: int, tokens: np.ndarray, entries: np.ndarray) -> torch.Tensor:
        verified = self._verified.get(layer_index)
        if verified is not None:
            return verified[torch.from_numpy(tokens).to(verified.device)]
        steps = self._drafted[layer_index]
        starts = np.cumsum([0, *map(len, steps)])
        rows, step = entries[tokens].T
        states = torch.cat(steps)
        return states[torch.from_numpy(starts[step] + rows).to(states.device)]
