"""Step 1 of the LayerSkip cycle on Model Runner V2: K + 1 early-layer steps, nothing on the host.

V2 keeps what the last step sampled on the device, so where a request stands is known there alone:
the host lays out the batch's shape, and the device fills in positions, slots and token ids.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import torch
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.forward_context import BatchDescriptor, set_forward_context
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
from vllm.v1.worker.gpu.dp_utils import dispatch_cg_and_sync_dp

from layerskip_vllm.runner_v2.draft_choice import DraftChoiceSpeculator
from layerskip_vllm.runner_v2.graphs import ProposeGraphManager
from layerskip_vllm.runner_v2.model_state import LayerSkipModelState

if TYPE_CHECKING:
    import numpy as np
    from torch import nn
    from vllm.v1.worker.gpu.input_batch import InputBatch

    from layerskip_vllm.models.split import SplitForwardMixin


class LayerSkipSpeculator(DraftChoiceSpeculator):
    """Drafts with the target's early layers, over its own KV blocks.

    vLLM's class brings the draft's buffers, attention groups and sampling.
    """

    model_state: LayerSkipModelState

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        super().__init__(vllm_config, device)
        self.draft_step = torch.zeros((), dtype=torch.int64, device=device)
        self.graphs: ProposeGraphManager = None  # type: ignore[assignment]
        """None while memory is profiled, eagerly."""
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

    def load_draft_model(
        self, target_model: nn.Module, target_attn_layer_names: set[str]
    ) -> nn.Module:
        """Return the target: it is its own draft."""
        return target_model

    def load_model(self, target_model: SplitForwardMixin) -> None:
        """Take the target as the draft; nothing is loaded.

        vLLM's own would count no layer as the draft's, since it looks for new ones.

        Raises:
            ValueError: No draft vocabulary can be made as configured.
        """
        self.model = target_model
        # vLLM asks the model, which knows no runner; it does so after this.
        target_model.get_model_state_cls = lambda: LayerSkipModelState
        self.draft_attn_layer_names = set(target_model.early_attn_layer_names)
        self.load_draft_head(target_model)

    def init_cudagraph_manager(self, cudagraph_mode: CUDAGraphMode) -> None:
        """Capture whole propose steps where the attention backend refreshes its metadata inside."""
        is_full = cudagraph_mode.decode_mode() == CUDAGraphMode.FULL
        captures = is_full and self.supports_decode_metadata_update
        mode = CUDAGraphMode.FULL_DECODE_ONLY if captures else CUDAGraphMode.NONE
        self.graphs = ProposeGraphManager(self.vllm_config, self.device, mode)

    def capture(self) -> None:
        """Capture all early steps of a propose as one graph, for each batch size and K."""
        self.idx_mapping.zero_()
        self.graphs.capture(
            self._run_steps,
            self.model_state,
            self.input_buffers,
            self.block_tables,
            self.attn_groups,
            self.kv_cache_config,
            progress_bar_desc="Capturing propose CUDA graphs",
        )

    @torch.inference_mode()
    def propose(  # type: ignore[no-untyped-def]
        self,
        input_batch: InputBatch,
        attn_metadata: dict[str, object],
        slot_mappings: dict[str, torch.Tensor],
        last_hidden_states: torch.Tensor,
        aux_hidden_states: list[torch.Tensor] | None,
        num_sampled: torch.Tensor,  # [num_reqs], int32
        num_rejected: torch.Tensor,  # [num_reqs], int32
        last_sampled: torch.Tensor,  # [max_num_reqs, 1], int64
        next_prefill_tokens: torch.Tensor,
        temperature: torch.Tensor,  # [max_num_reqs]
        seeds: torch.Tensor,  # [max_num_reqs]
        dp_sync_state=None,
        dummy_run: bool = False,
        skip_attn_for_dummy_run: bool = False,
        mm_inputs=None,
        is_profile: bool = False,
        num_speculative_tokens: int | None = None,
    ) -> torch.Tensor:
        """Draft K tokens for each request of the batch.

        Returns:
            [num_reqs, K of the configuration], int64.
        """
        num_reqs = input_batch.num_reqs
        num_drafts = self.num_speculative_steps
        if num_speculative_tokens is not None:
            num_drafts = num_speculative_tokens
        drafts_for = self._drafts_for(input_batch, dummy_run)
        if num_drafts == 0:
            self.model_state.set_exit_states(input_batch.idx_mapping_np, 0)
            return self.draft_tokens[:num_reqs].fill_(-1)
        self._copy_request_inputs(num_reqs, input_batch.idx_mapping, temperature, seeds, dummy_run)
        if drafts_for is not None:
            mask = async_tensor_h2d(drafts_for, device=self.device)
            self.idx_mapping[:num_reqs].masked_fill_(~mask, -1)
        self._enter_first_step(input_batch, num_rejected, last_sampled)
        self._upper_bound = input_batch.seq_lens_cpu_upper_bound
        if dummy_run and dp_sync_state is not None:
            # vLLM 0.33's ranks agree on the number of requests before a graph's padding.
            num_reqs = min(num_reqs, dp_sync_state.num_reqs)
        desc, num_tokens_across_dp = self._dispatch(num_reqs, num_drafts, dp_sync_state, is_profile)
        if desc.cg_mode == CUDAGraphMode.FULL:
            self._replay(desc)
        else:
            self._builds_metadata = not skip_attn_for_dummy_run
            sizes = num_reqs, desc.num_tokens
            self._run_steps(*sizes, None, None, num_tokens_across_dp, desc.cg_mode, num_drafts)
        if not dummy_run:
            states = num_drafts + 1 if drafts_for is None else (num_drafts + 1) * drafts_for
            self.model_state.set_exit_states(input_batch.idx_mapping_np, states)
        return self.draft_tokens[:num_reqs]

    def _drafts_for(self, input_batch: InputBatch, dummy_run: bool) -> np.ndarray | None:
        """[num_reqs], bool: which requests draft; None where all do.

        One in the middle of its prompt does not: what it samples is thrown away.
        """
        if dummy_run or not input_batch.has_prefill:
            return None
        computed = input_batch.num_computed_prefill_tokens_np + input_batch.num_scheduled_tokens
        return computed >= input_batch.prefill_len_np

    def _enter_first_step(
        self,
        input_batch: InputBatch,
        num_rejected: torch.Tensor,  # [num_reqs], int32
        last_sampled: torch.Tensor,  # [max_num_reqs, 1], int64
    ) -> None:
        """Lay out the early step on t, at position n of each request."""
        num_reqs, buffers = input_batch.num_reqs, self.input_buffers
        start_positions = input_batch.seq_lens[:num_reqs] - num_rejected
        buffers.input_ids[:num_reqs] = last_sampled[input_batch.idx_mapping, 0]
        buffers.positions[:num_reqs] = start_positions.clamp(max=self.max_model_len - 1)
        buffers.seq_lens[:num_reqs] = (start_positions + 1).clamp(max=self.max_model_len)
        buffers.seq_lens[num_reqs:] = 0
        torch.arange(self.max_num_reqs + 1, out=buffers.query_start_loc)
        buffers.query_start_loc.clamp_(max=num_reqs)

    def _dispatch(  # type: ignore[no-untyped-def]
        self, num_reqs: int, num_drafts: int, dp_sync_state, need_eager: bool
    ) -> tuple[BatchExecutionDescriptor, torch.Tensor | None]:
        """Choose a graph, on which data-parallel ranks agree as they did for the target's step."""
        num_tokens = num_reqs
        if dp_sync_state is not None:
            dp_sync_state, num_tokens = self._build_uniform_batch_dp_sync(dp_sync_state, num_reqs)
        desc, dp_sync_state = dispatch_cg_and_sync_dp(
            self.graphs,
            num_reqs,
            num_tokens,
            uniform_token_count=1,
            dp_size=self.dp_size,
            dp_rank=self.dp_rank,
            need_eager=need_eager,
            dp_sync_state=dp_sync_state,
        )
        if not need_eager:
            desc = self.graphs.specialize_spec_tokens(desc, num_drafts)
        return desc, dp_sync_state and dp_sync_state.num_tokens_across_dp

    def _replay(self, desc: BatchExecutionDescriptor) -> None:
        """Replay a graph, after refreshing what is outside it: block tables in a kernel's units."""
        for group in chain.from_iterable(self.attn_groups):
            tables = self.block_tables.input_block_tables[group.kv_cache_group_id]
            group.map_to_kernel_block_table(tables)
        self.graphs.run_fullgraph(desc)

    def _run_steps(
        self,
        num_reqs: int,
        num_tokens: int,
        attn_metadata: dict[str, object] | None,
        slot_mappings: dict[str, torch.Tensor] | None,
        num_tokens_across_dp: torch.Tensor | None,
        cudagraph_runtime_mode: CUDAGraphMode,
        num_speculative_steps: int,
    ) -> None:
        """Run all K + 1 early steps; what a graph captures.

        With metadata given, they are refreshed in place for each step, on the device. Without, each
        step builds its own. The last step leaves d_K's exit state and nothing else.
        """
        step_metadata: dict[str, object] | None
        keeps_states = self.model_state.use_exit_query_cache
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
                )
            if keeps_states:
                self.model_state.exit_query_cache.store_slots(
                    step, exit_state.first(num_reqs), self.idx_mapping[:num_reqs]
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
