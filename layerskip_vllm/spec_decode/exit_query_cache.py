"""The exit query cache: states that the draft left at layer E, kept for the next step's verify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from layerskip_vllm.models.split import ExitState


@dataclass
class ExitQueryEntries:
    """Which token of which request each cached state belongs to.

    States of request `req_ids[row]` stand for `token_ids[row, k]` at position
    `start_positions[row] + k`, k < `num_states[row]`.
    """

    req_ids: Sequence[str] = ()
    start_positions: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # [rows]
    token_ids: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))  # [rows, K]
    num_states: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # [rows]

    def match(
        self,
        continuing_req_ids: Sequence[str | None],  # None where the request must not resume
        num_computed: np.ndarray,  # [num_reqs], position of the request's first scheduled token
        scheduled_token_ids: np.ndarray,  # [num_reqs, K], its first scheduled tokens, -1 beyond
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find, for each scheduled request, how many of its tokens have a cached state.

        Returns:
            (cache_rows, num_resumed), int64, [num_reqs] each: the longest run of scheduled tokens
            that equal the cached ones at the same positions; 0 where request id or start position
            differ.
        """
        row_of: dict[str | None, int] = {req_id: row for row, req_id in enumerate(self.req_ids)}
        cache_rows = np.array([row_of.get(req_id, -1) for req_id in continuing_req_ids], np.int64)
        if not row_of:
            return cache_rows, np.zeros_like(cache_rows)
        width = self.token_ids.shape[1]
        equal = self.token_ids[cache_rows] == scheduled_token_ids[:, :width]
        num_equal = np.cumprod(equal, axis=1).sum(axis=1)
        stands = (cache_rows >= 0) & (self.start_positions[cache_rows] == num_computed)
        return cache_rows, np.where(stands, np.minimum(num_equal, self.num_states[cache_rows]), 0)


class ExitQueryCache:
    """States of at most `max_num_reqs` requests, K tokens each, for exactly one step.

    Preemption, abort, reordering, a skipped request or recomputation then all end in the full
    forward, which is always correct.
    """

    def __init__(
        self,
        max_num_reqs: int,
        num_speculative_tokens: int,
        hidden_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.width = num_speculative_tokens
        shape = (max_num_reqs, num_speculative_tokens, hidden_size)
        self._states = ExitState(
            hidden_states=torch.empty(shape, dtype=dtype, device=device),
            residual=torch.empty(shape, dtype=torch.float32, device=device),
        )
        self._entries = ExitQueryEntries()

    @property
    def num_bytes(self) -> int:
        """Memory held, in bytes."""
        return sum(states.nbytes for states in self._states)

    def store(self, step: int, exit_state: ExitState) -> None:
        """Copy the states of draft step `step`, row r to entry [r, step]."""
        for entries, rows in zip(self._states, exit_state, strict=True):
            entries[: len(rows), step] = rows

    def publish(self, entries: ExitQueryEntries) -> None:
        """Say what the stored states belong to; they can be taken once, in the next step."""
        self._entries = entries

    def take(self) -> ExitQueryEntries:
        """Return the entries of the last step and forget them."""
        entries, self._entries = self._entries, ExitQueryEntries()
        return entries

    def gather(self, exit_state_indices: torch.Tensor) -> ExitState:
        """Copy states out: [len(exit_state_indices), hidden_size] each."""
        return ExitState(
            *(s.flatten(0, 1).index_select(0, exit_state_indices) for s in self._states)
        )
