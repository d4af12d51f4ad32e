"""One LayerSkip cycle (arXiv 2404.16710, section 4.3), in the paper's order.

Request r has n computed tokens, KV valid in all layers, and a sampled next token t = x_0.

1. *Propose*, k = 0 .. K-1: early layers [0, E) on x_k at position n+k. They write their KV into the
   request's own blocks and leave an exit state, which goes to the exit query cache; the final norm
   and the shared LM head turn it into the draft d_{k+1} = x_{k+1}.
2. vLLM schedules t, d_1 .. d_m for r, m <= K.
3. *Verify*: tokens whose exit state is cached are resumed, the others are fresh. Early layers run
   on the fresh tokens, the remaining layers [E, L) on all. vLLM's rejection sampler decides.
4. Accepted tokens now have KV in all layers. At rejected positions it is stale, and the next cycle
   overwrites it before anything reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context, set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.spec_decode.draft_model import DraftModelProposer
from vllm.v1.spec_decode.utils import PADDING_SLOT_ID

from layerskip_vllm.spec_decode.draft_vocabulary import DraftHead, draft_token_ids
from layerskip_vllm.spec_decode.drafts import DraftChoice, Drafts
from layerskip_vllm.spec_decode.exit_query_cache import ExitQueryCache, ExitQueryEntries
from layerskip_vllm.spec_decode.plan import DraftPlan, DraftSchedule, ResumePlan, with_idle_rows

if TYPE_CHECKING:
    from layerskip_vllm.models.split import ExitState, SplitForwardMixin


class LayerSkipProposer(DraftModelProposer):
    """Drafts with the target's early layers and verifies from where they stopped.

    It derives from vLLM's `DraftModelProposer` because the V1 runner asserts on that type, and for
    its attention groups (`initialize_attn_backend`) and draft sampling (`_sample_from_logits`).
    """

    model: SplitForwardMixin

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        super().__init__(vllm_config, device)
        # The base class sizes these for a second model's prefill, which never happens here.
        self.hidden_states = self.inputs_embeds = torch.empty(0, device=device)
        self._arange_cpu = torch.arange(self.max_batch_size + 1, dtype=torch.int32)
        self.min_rows = 1
        """Least rows of a forward of the early layers; idle ones fill it up."""
        self.adapters_of: Callable[[np.ndarray], AbstractContextManager] = nullcontext
        """Makes the rows of the forwards within run with the LoRA adapters of these requests."""
        self.takes_embeddings = vllm_config.model_config.enable_prompt_embeds
        self.draft_head: DraftHead | None = None
        self.use_exit_query_cache = self.speculative_config.layerskip.exit_query_cache
        self.exit_query_cache = ExitQueryCache(
            self.max_batch_size,
            self.num_speculative_tokens,
            self.hidden_size,
            self.dtype,
            device,
        )

    def load_model(self, target_model: SplitForwardMixin) -> None:
        """Take the target as the draft; nothing is loaded.

        Raises:
            ValueError: No draft vocabulary can be made as configured.
        """
        self.model = target_model
        token_ids = draft_token_ids(
            self.speculative_config.layerskip, self.vllm_config.model_config
        )
        if token_ids is not None:
            self.draft_head = DraftHead(target_model.lm_head, token_ids)
        self._draft_attn_layer_names = set(target_model.early_attn_layer_names)

    def weights_changed(self) -> None:
        """Forget the old weights: states that they made, and the draft's copy of the LM head."""
        self.exit_query_cache.take()
        if self.draft_head is not None:
            self.draft_head.copy_rows(self.model.lm_head)

    def initialize_attn_backend(
        self, kv_cache_config: KVCacheConfig, kernel_block_sizes: list[int] | None = None
    ) -> None:
        """Build the early layers' attention groups, as vLLM does for a draft model's layers.

        Raises:
            ValueError: The attention kernel addresses smaller blocks than the KV cache manager, so
                slots computed from the manager's block size would be another request's.
        """
        super().initialize_attn_backend(kv_cache_config, kernel_block_sizes)
        kernel_block_size = (kernel_block_sizes or [self.block_size])[self.kv_cache_gid]
        if kernel_block_size != self.block_size:
            raise ValueError(
                f"self-speculation needs one block size, and block_size={self.block_size} is split "
                f"into kernel blocks of {kernel_block_size}: use --block-size {kernel_block_size}"
            )

    @torch.inference_mode()
    def propose_drafts(
        self,
        schedule: DraftSchedule,
        req_ids: Sequence[str],  # [num_drafting]
        block_table: torch.Tensor,  # [num_drafting, max_num_blocks], int32
        sampling_metadata: SamplingMetadata,  # of the drafting requests
    ) -> Drafts:
        """Step 1 of the cycle: up to K early-layer steps over the target's own KV blocks."""
        num_drafting = len(req_ids)
        num_rows = max(num_drafting, self.min_rows)
        plan = DraftPlan.from_schedule(
            schedule, num_rows, block_table, self.block_size, PADDING_SLOT_ID
        )
        input_ids = torch.zeros(num_rows, dtype=torch.int32, device=self.device)
        input_ids[:num_drafting] = torch.from_numpy(schedule.next_token_ids)
        choices: list[DraftChoice] = []
        with (
            set_forward_context(None, self.vllm_config, num_tokens=num_rows),
            self._adapters_of(schedule.rows),
        ):
            for k in range(len(plan.positions)):
                self._enter_draft_step(k, plan, block_table)
                exit_state, hidden_states = self._run_draft_step(input_ids, plan.positions[k])
                if self.use_exit_query_cache:
                    self.exit_query_cache.store(k, exit_state.first(num_drafting))
                choice = self._choose_drafts(hidden_states, sampling_metadata, num_drafting)
                choices.append(choice)
                input_ids[:num_drafting] = choice.token_ids

        drafts = Drafts.of_steps(req_ids, schedule.start_positions, choices, schedule.num_drafts)
        if self.use_exit_query_cache:
            # The last draft's state is not there: its early layers have not run.
            with_state = np.column_stack([schedule.next_token_ids, drafts.token_ids[:, :-1]])
            self.exit_query_cache.publish(
                ExitQueryEntries(req_ids, schedule.start_positions, with_state, schedule.num_drafts)
            )
        return drafts

    def _run_draft_step(
        self,
        input_ids: torch.Tensor,  # [num_rows], int32
        positions: torch.Tensor,  # [num_rows], int64
    ) -> tuple[ExitState, torch.Tensor]:
        """Run the early layers on one token a request.

        Where prompts may be embeddings, vLLM embeds every token before the model, and the early
        layers are compiled for one of the two kinds of input.
        """
        if not self.takes_embeddings:
            return self.model.run_early_layers(input_ids, positions)
        return self.model.run_early_layers(None, positions, self.model.embed_input_ids(input_ids))

    def _choose_drafts(
        self,
        hidden_states: torch.Tensor,  # [num_rows, hidden_size]
        sampling_metadata: SamplingMetadata,
        num_drafting: int,  # rows that are requests', the first ones
    ) -> DraftChoice:
        """Say each request's next draft."""
        is_greedy = not self._enable_probabilistic_draft_probs or sampling_metadata.all_greedy
        if self.use_local_argmax_reduction and is_greedy and self.draft_head is None:
            return DraftChoice(self.model.get_top_tokens(hidden_states)[:num_drafting])
        head = self.draft_head
        if head is None:
            logits = self.model.compute_logits(hidden_states)[:num_drafting]
        else:
            logits = self.model.logits_processor(head, hidden_states, head.bias)[:num_drafting]
        # `max` takes half of the time of `argmax` on a CPU in bfloat16.
        token_ids, probs = logits.max(dim=-1).indices, None
        if not is_greedy:
            token_ids, probs = self._sample_from_logits(logits, sampling_metadata)
        if head is not None:
            token_ids = head.token_ids[token_ids]
            probs = head.expand(probs) if probs is not None else None
        return DraftChoice(token_ids, probs)

    @torch.inference_mode()
    def verify(
        self,
        plan: ResumePlan,
        input_ids: torch.Tensor | None,  # [num_tokens], int32; None where they are embedded
        positions: torch.Tensor,  # [num_tokens], int64
        inputs_embeds: torch.Tensor | None,  # [num_tokens, hidden_size]
        common_attn_metadata: CommonAttentionMetadata,  # of the whole batch
    ) -> torch.Tensor:
        """Step 3 of the cycle: early layers on the fresh tokens, remaining layers on all.

        Runs inside the runner's forward context, whose metadata the remaining layers use as it is.

        Returns:
            [num_tokens, hidden_size], what the target's full forward returns.
        """
        exit_state = self.exit_query_cache.gather(plan.exit_state_indices)
        if plan.num_fresh_tokens:
            fresh = plan.fresh_token_indices
            self._enter_fresh_tokens(plan, common_attn_metadata)
            fresh_input = (
                None if rows is None else with_idle_rows(rows[fresh], self.min_rows)
                for rows in (input_ids, positions, inputs_embeds)
            )
            with self._adapters_of(plan.rows_of_fresh_tokens):
                fresh_state, _ = self.model.run_early_layers(*fresh_input)
            for rows, fresh_rows in zip(exit_state, fresh_state.first(len(fresh)), strict=True):
                rows[fresh] = fresh_rows
        return self.model.run_remaining_layers(positions, exit_state)

    def _enter_draft_step(
        self,
        step: int,
        plan: DraftPlan,
        block_table: torch.Tensor,  # [num_drafting, max_num_blocks], int32
    ) -> None:
        """Set the forward context to one draft step."""
        batch_size = len(block_table)
        slot_mapping = plan.slot_mapping[step]
        context = get_forward_context()
        context.attn_metadata = self._early_attn_metadata(
            CommonAttentionMetadata(
                query_start_loc=self.arange[: batch_size + 1],
                query_start_loc_cpu=self._arange_cpu[: batch_size + 1],
                seq_lens=plan.seq_lens[step],
                seq_lens_cpu_upper_bound=plan.seq_lens_cpu[step],
                num_reqs=batch_size,
                num_actual_tokens=batch_size,
                max_query_len=1,
                max_seq_len=plan.max_seq_lens[step],
                block_table_tensor=block_table,
                slot_mapping=slot_mapping[:batch_size],
                positions=plan.positions[step, :batch_size],
            )
        )
        context.slot_mapping = dict.fromkeys(context.attn_metadata, slot_mapping)

    def _adapters_of(self, rows: np.ndarray) -> AbstractContextManager:
        """Enter these requests' adapters. Idle rows take the last one's: vLLM has room for as many
        runs of rows with one adapter as there may be requests.
        """
        num_rows = max(len(rows), self.min_rows)
        return self.adapters_of(rows[np.minimum(np.arange(num_rows), len(rows) - 1)])

    def _enter_fresh_tokens(self, plan: ResumePlan, cm: CommonAttentionMetadata) -> None:
        """Let the early layers see a batch of the fresh tokens alone.

        The forward context keeps metadata and slots by layer name, so the remaining layers' stay.
        """
        rows = plan.fresh_rows
        slot_mapping = cm.slot_mapping[plan.fresh_token_indices]
        attn_metadata = self._early_attn_metadata(
            CommonAttentionMetadata(
                query_start_loc=plan.fresh_query_start_loc,
                query_start_loc_cpu=plan.fresh_query_start_loc.cpu(),
                seq_lens=cm.seq_lens[rows],
                seq_lens_cpu_upper_bound=cm.seq_lens_cpu_upper_bound[rows.cpu()],
                num_reqs=len(rows),
                num_actual_tokens=plan.num_fresh_tokens,
                max_query_len=plan.max_fresh_query_len,
                max_seq_len=cm.max_seq_len,
                block_table_tensor=cm.block_table_tensor[rows],
                slot_mapping=slot_mapping,
                positions=cm.positions[plan.fresh_token_indices],
                is_prefilling=cm.is_prefilling[rows.cpu()],
            )
        )
        context = get_forward_context()
        context.attn_metadata.update(attn_metadata)
        slot_mapping = with_idle_rows(slot_mapping, self.min_rows, PADDING_SLOT_ID)
        context.slot_mapping.update(dict.fromkeys(attn_metadata, slot_mapping))

    def _early_attn_metadata(self, cm: CommonAttentionMetadata) -> dict[str, object]:
        """Let each backend build its own metadata for the early layers, by layer name."""
        return {
            layer_name: attn_metadata
            for group in self.draft_attn_groups
            for attn_metadata in (group.build_metadata(cm),)
            for layer_name in group.layer_names
        }

    def dummy_run(self, num_tokens: int, *_args: object, **_kwargs: object) -> None:
        """Nothing to warm up: the target's own dummy run has run both segments."""
