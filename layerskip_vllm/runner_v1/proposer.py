"""One LayerSkip cycle (arXiv 2404.16710, section 4.3), in the paper's order.

Request r has n computed tokens, KV valid in all layers, and a sampled next token t = x_0.

1. *Propose*, k = 0 .. K: early layers [0, E) on x_k at position n+k. They write their KV into the
   request's own blocks and leave an exit state, which goes to the exit query cache. While k < K,
   the final norm and the shared LM head turn it into the draft d_{k+1} = x_{k+1}.
2. vLLM schedules t, d_1 .. d_m for r, m <= K.
3. *Verify*: where every scheduled token has an exit state, the remaining layers [E, L) run on those
   states and nothing else does. Where one has none, as in a batch with a prompt, the full forward
   runs on all. vLLM's rejection sampler decides.
4. Accepted tokens now have KV in all layers. At rejected positions it is stale, and the next cycle
   overwrites it before anything reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context, set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.spec_decode.utils import PADDING_SLOT_ID

from layerskip_vllm.runner_v1.draft_choice import DraftChoiceProposer
from layerskip_vllm.runner_v1.passed_states import PassedStates
from layerskip_vllm.spec_decode.draft_batch import DraftBatch, DraftSteps
from layerskip_vllm.spec_decode.exit_query_cache import ExitQueryCache

if TYPE_CHECKING:
    from layerskip_vllm.models.segments import ExitState
    from layerskip_vllm.models.split import Observe, SplitForwardMixin


class LayerSkipProposer(DraftChoiceProposer):
    """Drafts with the target's early layers and verifies from where they stopped.

    It derives from vLLM's `DraftModelProposer` because the V1 runner asserts on that type, and for
    its attention groups (`initialize_attn_backend`).
    """

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
        self.use_exit_query_cache = self.speculative_config.layerskip.exit_query_cache
        self.exit_query_cache = ExitQueryCache(
            self.max_batch_size,
            self.num_speculative_tokens,
            self.hidden_size,
            self.dtype,
            device,
        )
        self.passed_states: PassedStates | None = None
        """Where there are several exits."""
        layerskip = self.speculative_config.layerskip
        self.exits = layerskip.exits
        if len(self.exits) > 1 and self.use_exit_query_cache:
            self.passed_states = PassedStates(len(layerskip.exit_layers))

    def load_model(self, target_model: SplitForwardMixin) -> None:
        """Take the target as the draft; nothing is loaded.

        Raises:
            ValueError: No draft vocabulary can be made as configured.
        """
        self.model = target_model
        self.load_draft_head(target_model)
        self._draft_attn_layer_names = set(target_model.early_attn_layer_names)

    def weights_changed(self) -> None:
        """Forget the old weights: states that they made, and the draft's copy of the LM head."""
        self.exit_query_cache.take()
        super().weights_changed()

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
        batch: DraftBatch,
        block_table: torch.Tensor,  # [num_reqs, max_num_blocks], int32
        sampling_metadata: SamplingMetadata,  # of the batch's requests
    ) -> None:
        """Step 1 of the cycle: K + 1 early-layer steps over the target's own KV blocks.

        The last one, on d_K, needs no head: it leaves the state from which d_K is verified. Fills
        in the batch's drafts.
        """
        steps = DraftSteps.of_batch(
            batch,
            block_table,
            num_rows=max(len(batch.rows), self.min_rows),
            block_size=self.block_size,
            padding_slot=PADDING_SLOT_ID,
            with_last_draft=self.use_exit_query_cache,
        )
        input_ids = torch.zeros_like(steps.positions[0], dtype=torch.int32)
        input_ids[: len(batch.rows)] = torch.from_numpy(batch.next_token_ids)
        drafts, probs = [], []
        if self.passed_states is not None:
            self.passed_states.start_cycle()
        with set_forward_context(None, self.vllm_config, num_tokens=len(input_ids)):
            for num_reqs, same_size in groupby(range(len(steps)), steps.num_reqs.__getitem__):
                with self._adapters_of(batch.rows[:num_reqs]):
                    for k in same_size:
                        hidden_states = self._run_early_step(
                            k, steps, input_ids, block_table, batch.drafts_at.layer_index
                        )
                        num_drafting = int(np.count_nonzero(batch.num_drafts > k))
                        if num_drafting:
                            chosen, its_probs = self._choose_drafts(
                                hidden_states,
                                sampling_metadata,
                                num_drafting,
                                batch.drafts_at.uses_lm_head,
                            )
                            input_ids[:num_drafting] = chosen
                            drafts.append(chosen)
                            probs.append(its_probs)
        # Steps side by side, each padded to as many rows as the first.
        batch.token_ids = pad_sequence(drafts).cpu().numpy()
        batch.sampling_probs = None if probs[0] is None else pad_sequence(probs)
        if self.use_exit_query_cache:
            self.exit_query_cache.publish(batch)

    def _run_early_step(
        self,
        step: int,
        steps: DraftSteps,
        input_ids: torch.Tensor,  # [num_rows of the first step], int32
        block_table: torch.Tensor,  # [num_reqs, max_num_blocks], int32
        exit_index: int,
    ) -> torch.Tensor:
        """Run the early layers on one token of each request that is still in the batch.

        Returns:
            [num_rows, hidden_size], after the final norm: what the LM head takes.
        """
        num_reqs = steps.num_reqs[step]
        num_rows = max(num_reqs, self.min_rows)
        self._enter_draft_step(step, steps, block_table)
        passed = self.passed_states
        observe = None if passed is None else passed.drafted
        exit_state, hidden_states = self._run_early_layers(
            input_ids[:num_rows], steps.positions[step, :num_rows], exit_index, observe
        )
        if self.use_exit_query_cache:
            self.exit_query_cache.store(step, exit_state.first(num_reqs))
        return hidden_states

    def _run_early_layers(
        self,
        input_ids: torch.Tensor,  # [num_rows], int32
        positions: torch.Tensor,  # [num_rows], int64
        exit_index: int,
        observe: Observe | None = None,
    ) -> tuple[ExitState, torch.Tensor]:
        """Run the early layers on one token a request, and on idle rows.

        Where prompts may be embeddings, vLLM embeds every token before the model, and the early
        layers are compiled for one of the two kinds of input.
        """
        if not self.takes_embeddings:
            return self.model.run_early_layers(input_ids, positions, None, exit_index, observe)
        inputs_embeds = self.model.embed_input_ids(input_ids)
        return self.model.run_early_layers(None, positions, inputs_embeds, exit_index, observe)

    @torch.inference_mode()
    def verify(
        self,
        entries: np.ndarray,  # [num_tokens, 2], of the exit query cache
        positions: torch.Tensor,  # [num_tokens], int64
        exit_index: int,
    ) -> torch.Tensor:
        """Step 3 of the cycle, where every token is resumed: the remaining layers alone.

        Runs inside the runner's forward context, whose metadata they use as it is.

        Returns:
            [num_tokens, hidden_size], what the target's full forward returns.
        """
        states = self.exit_query_cache.gather(entries)
        passed = self.passed_states
        observe = None if passed is None else passed.verified
        return self.model.run_remaining_layers(positions, states, exit_index, observe)

    def _enter_draft_step(
        self,
        step: int,
        steps: DraftSteps,
        block_table: torch.Tensor,  # [num_reqs, max_num_blocks], int32
    ) -> None:
        """Set the forward context to one early step."""
        num_reqs = steps.num_reqs[step]
        slot_mapping = steps.slot_mapping[step, : max(num_reqs, self.min_rows)]
        context = get_forward_context()
        context.attn_metadata = self._early_attn_metadata(
            CommonAttentionMetadata(
                query_start_loc=self.arange[: num_reqs + 1],
                query_start_loc_cpu=self._arange_cpu[: num_reqs + 1],
                seq_lens=steps.seq_lens[step, :num_reqs],
                seq_lens_cpu_upper_bound=steps.seq_lens_cpu[step, :num_reqs],
                num_reqs=num_reqs,
                num_actual_tokens=num_reqs,
                max_query_len=1,
                max_seq_len=steps.max_seq_lens[step],
                block_table_tensor=block_table[:num_reqs],
                slot_mapping=slot_mapping[:num_reqs],
                positions=steps.positions[step, :num_reqs],
            )
        )
        context.slot_mapping = dict.fromkeys(context.attn_metadata, slot_mapping)

    def _adapters_of(self, rows: np.ndarray) -> AbstractContextManager:
        """Enter these requests' adapters. Idle rows take the last one's: vLLM has room for as many
        runs of rows with one adapter as there may be requests.
        """
        num_rows = max(len(rows), self.min_rows)
        return self.adapters_of(rows[np.minimum(np.arange(num_rows), len(rows) - 1)])

    def _early_attn_metadata(self, cm: CommonAttentionMetadata) -> dict[str, object]:
        """Let each backend build its own metadata for the early layers, by layer name."""
        return {
            layer_name: attn_metadata
            for group in self.draft_attn_groups
            for attn_metadata in (group.build_metadata(cm),)
            for layer_name in group.layer_names
        }

    def dummy_run(self, num_tokens: int, *_args: object, **_kwargs: object) -> None:
        """Compile all segments: the target's own dummy run has run the full forward only."""
        input_ids = torch.zeros(num_tokens, dtype=torch.int32, device=self.device)
        positions = torch.zeros(num_tokens, dtype=torch.int64, device=self.device)
        with set_forward_context(None, self.vllm_config, num_tokens=num_tokens):
            last = self.model.num_exits - 1
            exit_state, _ = self._run_early_layers(input_ids, positions, last)
            self.model.run_remaining_layers(positions, exit_state, last)
