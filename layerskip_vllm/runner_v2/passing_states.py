"""What each exit makes of the tokens that pass it, kept until it is known which were right."""

from __future__ import annotations

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d


class PassingStates:
    """Normed states at every exit, of the tokens that a cycle drafts and verifies.

    Propose passes the exits up to the one that drafts, verify those after it, so between them they
    leave a state at each. Where a step observes, the head reads them; else the next cycle
    overwrites them.
    """

    def __init__(
        self,
        num_exits: int,
        max_num_reqs: int,
        num_speculative_tokens: int,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_exits, max_num_reqs, num_speculative_tokens + 1, hidden_size)
        self._states = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def num_bytes(self) -> int:
        """Memory held, in bytes."""
        return self._states.nbytes

    def store_slots(
        self, step: int, slots: torch.Tensor, layer_index: int, normed_states: torch.Tensor
    ) -> None:
        """Keep those of an early step, row r at entry [slots[r], step].

        Args:
            step: k.
            slots: [num_reqs], integers; -1 stores to the last row, which is nobody's.
            layer_index: In `exit_layers`.
            normed_states: [num_rows, hidden_size], those beyond the slots idle.
        """
        self._states[layer_index, slots, step] = normed_states[: len(slots)]

    def store_verified(
        self, slots: torch.Tensor, layer_index: int, normed_states: torch.Tensor
    ) -> None:
        """Keep those of a verify in which each slot has as many tokens; on the device alone.

        Args:
            slots: [num_reqs], int64, none negative.
            layer_index: In `exit_layers`.
            normed_states: [num_reqs * num_tokens, hidden_size], slot by slot.
        """
        by_slot = normed_states.unflatten(0, (len(slots), -1))
        self._states[layer_index, slots, : by_slot.shape[1]] = by_slot

    def at(self, entries: np.ndarray) -> EntryStates:
        """The states at some entries: [num_tokens, 2], int64, row and step of each."""
        flat = async_tensor_h2d(entries @ np.array([self._states.shape[2], 1]), self._states.device)
        return EntryStates(self._states.flatten(1, 2), flat)


class EntryStates:
    """The states of a step's tokens."""

    def __init__(self, states: torch.Tensor, entries: torch.Tensor) -> None:
        self._states, self._entries = states, entries

    def store(self, layer_index: int, normed_states: torch.Tensor) -> None:
        """Keep those of a verify, [num_tokens, hidden_size]."""
        self._states[layer_index].index_copy_(0, self._entries, normed_states)

    def rows(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """Those of some tokens: after each exit layer [num_rows, hidden_size]."""
        entries = self._entries[rows]
        return [states.index_select(0, entries) for states in self._states]
