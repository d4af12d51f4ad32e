"""Observing steps on model runner V1: the full forward, and what each exit makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from layerskip_vllm.runner_v1.sampled_rows import SampledRows
from layerskip_vllm.spec_decode.exit_matches import ExitMatches

if TYPE_CHECKING:
    from layerskip_vllm.runner_v1.proposer import LayerSkipProposer


class ExitObserver:
    """Keeps the normed states of one step from its forward until its tokens are sampled."""

    def __init__(self, drafter: LayerSkipProposer) -> None:
        self._drafter = drafter
        self._matches = ExitMatches(
            lambda states, head: drafter.top_tokens(states, len(states), head),
            drafter.exits,
            has_adapters=drafter.vllm_config.lora_config is not None,
        )
        self._normed_states: list[torch.Tensor] = []
        """[num_rows, hidden_size] after each exit layer: of the rows that are sampled."""

    def forget(self) -> None:
        """Start a step."""
        self._normed_states = []

    @property
    def has_states(self) -> bool:
        """Whether the step observes."""
        return bool(self._normed_states)

    def forward(
        self,
        rows: SampledRows,
        query_ends: np.ndarray,  # [num_reqs], where each request's tokens end in the forward
        input_ids: torch.Tensor | None,  # [num_tokens], integers
        positions: torch.Tensor,  # [num_tokens], int64
        inputs_embeds: torch.Tensor | None,  # [num_tokens, hidden_size]
    ) -> torch.Tensor:
        """Run the full forward by segments: [num_tokens, hidden_size], what it returns."""
        at = torch.from_numpy(_sampled(rows, query_ends)).to(positions.device)

        def keep(_: int, normed_states: torch.Tensor) -> None:
            self._normed_states.append(normed_states[at])

        return self._drafter.model.run_all_segments(keep, input_ids, positions, inputs_embeds)

    def read(
        self,
        rows: SampledRows,
        query_ends: np.ndarray,  # [num_reqs], where each request's tokens end in the forward
        entries: np.ndarray,  # [num_tokens, 2], of the exit query cache
    ) -> None:
        """Read what the cycle has left at each exit, after a verify that resumed."""
        states = self._drafter.passed_states
        if states is not None:
            self._normed_states = states.of_tokens(_sampled(rows, query_ends), entries)

    def count(
        self,
        rows: SampledRows,
        sampled: torch.Tensor,  # [num_reqs, most drafts + 1], int32, -1 where rejected
        is_discarded: np.ndarray,  # [num_reqs], bool: in the middle of its prompt
    ) -> list[list[int]]:
        """Count [reached, matched] of each exit: rows with an emitted token, and that token."""
        emitted = sampled.cpu()[rows.req_indices, rows.in_request]
        emitted[is_discarded[rows.req_indices]] = -1
        emitted = emitted.to(sampled.device)
        counts = self._matches.count(self._normed_states, emitted).tolist()
        self.forget()
        return counts


def _sampled(rows: SampledRows, query_ends: np.ndarray) -> np.ndarray:
    """Where the sampled rows are among the forward's tokens: [num_rows], int64."""
    return np.repeat(query_ends - rows.num_rows, rows.num_rows) + rows.in_request
