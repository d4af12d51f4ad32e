"""Observing steps on Model Runner V2: what each exit would have drafted, counted on the device."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import torch

from layerskip_vllm.runner_v2.step_times import moments_of
from layerskip_vllm.spec_decode.exit_matches import ExitMatches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.sample.output import SamplerOutput

    from layerskip_vllm.runner_v2.draft_choice import DraftChoiceSpeculator
    from layerskip_vllm.runner_v2.step_times import Moment


class ExitObserver:
    """Counts without waiting for the device; the numbers travel with a later step's output."""

    def __init__(self, speculator: DraftChoiceSpeculator) -> None:
        self._matches = ExitMatches(speculator.top_tokens, speculator.exits)
        self._mark = moments_of(speculator.device)
        self._on_the_way: deque[tuple[torch.Tensor, Moment]] = deque()

    def count(
        self,
        normed_states: Sequence[torch.Tensor],  # after each exit layer [num_rows, hidden_size]
        input_batch: InputBatch,
        output: SamplerOutput,
        num_sampled: torch.Tensor,  # [num_reqs], int32; 0 in the middle of a prompt
    ) -> None:
        """Count [reached, matched] of each exit: rows with an emitted token, and that token."""
        cu_num_rows = input_batch.cu_num_logits
        rows = torch.arange(len(normed_states[0]), device=cu_num_rows.device)
        req_indices = torch.bucketize(rows, cu_num_rows[1:], right=True)
        in_request = rows - cu_num_rows[req_indices]
        emitted = output.sampled_token_ids[req_indices, in_request]
        emitted = emitted.masked_fill(in_request >= num_sampled[req_indices], -1)
        counts = self._matches.count(normed_states, emitted).to("cpu", non_blocking=True)
        self._on_the_way.append((counts, self._mark()))

    def take(self) -> list[list[int]] | None:
        """Counts of the oldest step that no call has returned, if the device has finished it."""
        if not self._on_the_way or not self._on_the_way[0][1].has_passed():
            return None
        return self._on_the_way.popleft()[0].tolist()
