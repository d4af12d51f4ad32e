"""Step 1 of the LayerSkip cycle on Model Runner V2: K + 1 early-layer steps, nothing on the host.

V2 keeps what the last step sampled on the device, so where a request stands is known there alone:
the host lays out the batch's shape, and the device fills in positions, slots and token ids.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.utils.torch_utils import async_tensor_h2d
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor
from vllm.v1.worker.gpu.dp_utils import dispatch_cg_and_sync_dp

from layerskip_vllm.runner_v2.early_steps import EarlyStepsSpeculator
from layerskip_vllm.runner_v2.graphs import ProposeGraphManager, at_exit
from layerskip_vllm.runner_v2.model_state import LayerSkipModelState

if TYPE_CHECKING:
    import numpy as np
    from torch import nn
    from vllm.v1.worker.gpu.input_batch import InputBatch

    from layerskip_vllm.models.split import SplitForwardMixin


class LayerSkipSpeculator(EarlyStepsSpeculator):
    """Drafts with the target's early layers, over its own KV blocks.

    vLLM's class brings the draft's buffers, attention groups and sampling.
    """

    graphs: ProposeGraphManager = None  # type: ignore[assignment]
    """None while memory is profiled, eagerly."""
    exit_index = 0
    """At which of `exits` the next propose drafts."""

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
        """Capture all early steps of a propose as one graph, for each batch size, K and exit."""
        self.idx_mapping.fill_(-1)
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
        num_drafts = self.num_speculative_steps
        if num_speculative_tokens is not None:
            num_drafts = num_speculative_tokens
        num_reqs = input_batch.num_reqs
        if num_drafts == 0:
            self.model_state.set_exit_states(input_batch.idx_mapping_np, 0)
            return self.draft_tokens[:num_reqs].fill_(-1)
        if dummy_run and dp_sync_state is not None:
            # vLLM 0.33's ranks agree on the number of requests before a graph's padding.
            num_reqs = min(num_reqs, dp_sync_state.num_reqs)
        drafts_for = self._drafts_for(input_batch, dummy_run)
        self._num_reqs.fill_(num_reqs)
        self._num_rejected[:num_reqs] = num_rejected[:num_reqs]
        self._enter_slots(input_batch.idx_mapping, drafts_for, dummy_run)
        if self.draft_logits is not None:
            self.temperature.copy_(temperature)
            self.seeds.copy_(seeds)
        self._upper_bound = input_batch.seq_lens_cpu_upper_bound
        desc, num_tokens_across_dp = self._dispatch(num_reqs, num_drafts, dp_sync_state, is_profile)
        if desc.cg_mode == CUDAGraphMode.FULL:
            self._replay(desc)
        else:
            self._builds_metadata = not skip_attn_for_dummy_run
            sizes = num_reqs, desc.num_tokens
            how = desc.cg_mode, num_drafts, self.exit_index
            self._run_steps(*sizes, None, None, num_tokens_across_dp, *how)
        if not dummy_run:
            states = num_drafts + 1 if drafts_for is None else (num_drafts + 1) * drafts_for
            layer_index = self.exits[self.exit_index].layer_index
            self.model_state.set_exit_states(input_batch.idx_mapping_np, states, layer_index)
        return self.draft_tokens[:num_reqs]

    def _drafts_for(self, input_batch: InputBatch, dummy_run: bool) -> np.ndarray | None:
        """[num_reqs], bool: which requests draft; None where all do.

        One in the middle of its prompt does not: what it samples is thrown away.
        """
        if dummy_run or not input_batch.has_prefill:
            return None
        computed = input_batch.num_computed_prefill_tokens_np + input_batch.num_scheduled_tokens
        return computed >= input_batch.prefill_len_np

    def _enter_slots(
        self, slots: torch.Tensor, drafts_for: np.ndarray | None, dummy_run: bool
    ) -> None:
        """Copy each row's slot; -1 where it has no KV blocks to write to or does not draft."""
        self.idx_mapping.fill_(-1)
        if dummy_run:
            return
        rows = self.idx_mapping[: len(slots)]
        rows.copy_(slots)
        if drafts_for is not None:
            rows.masked_fill_(async_tensor_h2d(~drafts_for, device=self.device), -1)

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
            desc = at_exit(desc, self.exit_index)
        return desc, dp_sync_state and dp_sync_state.num_tokens_across_dp

    def _replay(self, desc: BatchExecutionDescriptor) -> None:
        """Replay a graph, after refreshing what is outside it: block tables in a kernel's units."""
        for group in chain.from_iterable(self.attn_groups):
            tables = self.block_tables.input_block_tables[group.kv_cache_group_id]
            group.map_to_kernel_block_table(tables)
        self.graphs.run_fullgraph(desc)
