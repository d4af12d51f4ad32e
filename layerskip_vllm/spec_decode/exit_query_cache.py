"""The exit query cache: states that the draft left at its exit, kept for the next step's verify."""

from __future__ import annotations

import numpy as np
import torch
from vllm.utils.torch_utils import async_tensor_h2d

from layerskip_vllm.models.segments import ExitState
from layerskip_vllm.spec_decode.draft_batch import DraftBatch


class ExitQueryCache:
    """States of at most `max_num_reqs` requests, K + 1 tokens each, for exactly one step.

    After preemption, abort, a skipped request or recomputation the next step runs the full forward,
    which is always correct.
    """

    def __init__(
        self,
        max_num_reqs: int,
        num_speculative_tokens: int,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._width = num_speculative_tokens + 1
        shape = (max_num_reqs, self._width, hidden_size)
        self._states = ExitState(
            hidden_states=torch.zeros(shape, dtype=dtype, device=device),
            residual=torch.zeros(shape, dtype=torch.float32, device=device),
        )
        self._batch: DraftBatch | None = None

    @property
    def num_bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(states.nbytes for states in self._states)

    def store(self, step: int, exit_state: ExitState) -> None:
        """Copy the states of early step `step`, row r to entry [r, step]."""
        for entries, rows in zip(self._states, exit_state, strict=True):
            entries[: len(rows), step] = rows

    def store_slots(self, step: int, exit_state: ExitState, slots: torch.Tensor) -> None:
        """Copy the states of early step `step`, row r to entry [slots[r], step].

        Args:
            step: k.
            exit_state: [num_rows, hidden_size] each.
            slots: [num_rows], int64; -1 stores to the last row, which is nobody's.
        """
        for entries, rows in zip(self._states, exit_state, strict=True):
            entries[slots, step] = rows

    def gather_slots(self, slots: torch.Tensor, num_states: int) -> ExitState:
        """Copy the first states of each slot out, on the device alone.

        Args:
            slots: [num_rows], int64, none negative.
            num_states: Early steps of each.

        Returns:
            [num_rows * num_states, hidden_size] each, slot by slot.
        """
        first = (states[:, :num_states] for states in self._states)
        return ExitState(*(states.index_select(0, slots).flatten(0, 1) for states in first))

    def publish(self, batch: DraftBatch) -> None:
        """Name the batch whose states are stored; it can be taken once, in the next step."""
        self._batch = batch

    def take(self) -> DraftBatch | None:
        """Return the last step's batch and forget it."""
        batch, self._batch = self._batch, None
        return batch

    def gather(self, entries: np.ndarray) -> ExitState:
        """Copy states out.

        Args:
            entries: [num_tokens, 2], int64: row and step of each.

        Returns:
            [num_tokens, hidden_size] each.
        """
        flat = async_tensor_h2d(entries @ np.array([self._width, 1]), self._states[0].device)
        return ExitState(*(states.flatten(0, 1).index_select(0, flat) for states in self._states))
