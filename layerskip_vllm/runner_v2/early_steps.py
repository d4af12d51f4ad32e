"""The K + 1 early steps of a propose: the region that a CUDA graph captures.

Nothing here reads data on the host, and each tensor that outlives a step has one address.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.forward_context import BatchDescriptor, set_forward_context
from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor

from layerskip_vllm.runner_v2.draft_choice import DraftChoiceSpeculator
from layerskip_vllm.runner_v2.model_state import LayerSkipModelState

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class EarlyStepsSpeculator(DraftChoiceSpeculator):
    """Runs the early layers on t and on each draft, row by row of the batch.

    The step before has left on the device where each request stands.
    """

    model_state: LayerSkipModelState

    def __init__(
        self,
        vllm_config: VllmConfig,
        device: torch.device,
        last_sampled: torch.Tensor,  # [max_num_reqs, 1], int64, by slot
        target_seq_lens: torch.Tensor,  # [max_num_reqs], int32, by row: computed and scheduled
    ) -> None:
        """Keep the tensors of the runner that every propose reads: graphs know their addresses."""
        super().__init__(vllm_config, device)
        self.exits = vllm_config.speculative_config.layerskip.exits
        self._last_sampled, self._target_seq_lens = last_sampled, target_seq_lens
        self._num_rejected = torch.zeros_like(target_seq_lens)
        self._num_reqs = torch.zeros((), dtype=torch.int32, device=device)
        self._rows = torch.arange(self.max_num_reqs + 1, dtype=torch.int32, device=device)
        self.draft_step = torch.zeros((), dtype=torch.int64, device=device)
        self._upper_bound = torch.empty(0)
        """[num_reqs], int32, on the host: no request is longer, drafts apart."""
        self._builds_metadata = True
        """False while memory is profiled: there are no KV blocks then."""

    @property
    def max_model_len(self) -> int:
        """The target's, which vLLM lowers after this is made if it is to fit memory."""
        return self.vllm_config.model_config.max_model_len

    @max_model_len.setter
    def max_model_len(self, _: int) -> None:
        """Accept what vLLM 0.32's constructor sets; 0.33 has the property above."""

    def _enter_first_step(self, num_reqs: int) -> None:
        """Lay out the early step on t, at position n of each request; rows of a graph that no
        request fills get no tokens.
        """
        buffers = self.input_buffers
        start_positions = self._target_seq_lens[:num_reqs] - self._num_rejected[:num_reqs]
        slots = self.idx_mapping[:num_reqs].clamp(min=0)
        buffers.input_ids[:num_reqs] = self._last_sampled[slots, 0]
        buffers.positions[:num_reqs] = start_positions.clamp(0, self.max_model_len - 1)
        torch.minimum(self._rows, self._num_reqs, out=buffers.query_start_loc)
        seq_lens = (start_positions + 1).clamp(max=self.max_model_len)
        is_filled = self._rows[:num_reqs] < self._num_reqs
        buffers.seq_lens.zero_()
        buffers.seq_lens[:num_reqs] = seq_lens * is_filled

    def _run_steps(
        self,
        num_reqs: int,
        num_tokens: int,
        attn_metadata: dict[str, object] | None,
        slot_mappings: dict[str, torch.Tensor] | None,
        num_tokens_across_dp: torch.Tensor | None,
        cudagraph_runtime_mode: CUDAGraphMode,
        num_speculative_steps: int,
        exit_index: int = 0,
    ) -> None:
        """Lay out and run all K + 1 early steps; what a graph captures.

        With metadata given, they are refreshed in place for each step, on the device. Without, each
        step builds its own. The last step leaves d_K's exit state and nothing else. `exit_index` is
        one of `exits`.
        """
        layer_index, self.uses_lm_head = self.exits[exit_index]
        step_metadata: dict[str, object] | None
        keeps_states = self.model_state.use_exit_query_cache
        passing, slots = self.model_state.passing_states, self.idx_mapping[:num_reqs]
        self._enter_first_step(num_reqs)
        for step in range(num_speculative_steps + keeps_states):
            if attn_metadata is not None:
                self._compute_slots(num_reqs, num_tokens)  # into the mappings' own buffer
                self._update_draft_decode_metadata(attn_metadata, num_reqs)
                step_metadata, step_slots = attn_metadata, slot_mappings
            else:
                step_metadata, step_slots = self._build_context(step, num_reqs, num_tokens)
            with set_forward_context(
                step_metadata,
                self.vllm_config,
                num_tokens=num_tokens,
                cudagraph_runtime_mode=cudagraph_runtime_mode,
                num_tokens_across_dp=num_tokens_across_dp,
                slot_mapping=step_slots,
                batch_descriptor=BatchDescriptor(num_tokens=num_tokens),
            ):
                exit_state, hidden_states = self.model.run_early_layers(
                    self.input_buffers.input_ids[:num_tokens],
                    self.input_buffers.positions[:num_tokens],
                    exit_index=layer_index,
                    observe=None if passing is None else partial(passing.store_slots, step, slots),
                )
            if keeps_states:
                self.model_state.exit_query_cache.store_slots(
                    step, exit_state.first(num_reqs), slots
                )
            if step < num_speculative_steps:
                self._draft(step, hidden_states[:num_reqs])

    def _compute_slots(self, num_reqs: int, num_tokens: int) -> torch.Tensor:
        return self.block_tables.compute_slot_mappings(
            self.idx_mapping[:num_reqs],
            self.input_buffers.query_start_loc[: num_reqs + 1],
            self.input_buffers.positions[:num_reqs],
            num_tokens,
        )

    def _build_context(
        self, step: int, num_reqs: int, num_tokens: int
    ) -> tuple[dict[str, object] | None, dict[str, torch.Tensor] | None]:
        """Attention metadata and slot mappings of one eager step; None while memory is profiled."""
        if not self._builds_metadata:
            return None, None
        slots = self._compute_slots(num_reqs, num_tokens)
        longest = int(self._upper_bound[:num_reqs].max()) + step + 1
        self.draft_max_seq_len = min(longest, self.max_model_len)
        attn_metadata = self._build_uniform_attn_metadata(
            BatchExecutionDescriptor(CUDAGraphMode.NONE, num_reqs, num_reqs),
            num_reqs,
            1,
            self._upper_bound,
            step + 1,
        )
        return attn_metadata, build_slot_mappings_by_layer(slots, self.kv_cache_config)

    def _draft(self, step: int, hidden_states: torch.Tensor) -> None:
        """Draft d_{step + 1} of each request, and lay out the early step on it."""
        num_reqs = len(hidden_states)
        buffers, idx_mapping = self.input_buffers, self.idx_mapping[:num_reqs]
        positions = buffers.positions[:num_reqs]
        self.draft_step.fill_(step)
        drafts = self.sample_draft(
            hidden_states,
            positions,
            idx_mapping,
            self.temperature,
            self.seeds,
            self.draft_step,
            self.draft_logits,
        )
        self.draft_tokens[:num_reqs, step] = drafts
        buffers.input_ids[:num_reqs] = drafts
        positions.add_(1).clamp_(max=self.max_model_len - 1)
        seq_lens = buffers.seq_lens[:num_reqs]
        seq_lens.add_(seq_lens > 0).clamp_(max=self.max_model_len)  # 0 in a graph's idle rows
