"""Which requests have exit states, and how the target's forward resumes from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from layerskip_vllm.spec_decode.exit_query_cache import ExitQueryCache

if TYPE_CHECKING:
    from torch import nn
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import NewRequestData
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache
    from vllm.v1.worker.gpu.states import RequestState


class LayerSkipModelState(DefaultModelState):
    """vLLM's state of a decoder, and the exit query cache by request slot."""

    def __init__(
        self,
        vllm_config: VllmConfig,
        model: nn.Module,
        encoder_cache: EncoderCache | None,
        device: torch.device,
    ) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        speculative_config = vllm_config.speculative_config
        self.use_exit_query_cache = speculative_config.layerskip.exit_query_cache
        self.exit_query_cache = ExitQueryCache(
            self.max_num_reqs + 1,
            speculative_config.num_speculative_tokens,
            self.model_config.get_hidden_size(),
            self.dtype,
            device,
        )
        self.num_exit_states = np.zeros(self.max_num_reqs, np.int64)
        """[max_num_reqs], by slot: tokens after the computed ones that have an exit state."""
        self.resumes = False
        """Whether the step that is being prepared resumes."""

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        """A request that is new, or comes back from preemption, has no exit states."""
        super().add_request(req_index, new_req_data)
        self.num_exit_states[req_index] = 0

    def set_exit_states(self, slots: np.ndarray, num_states: int | np.ndarray) -> None:
        """Record what propose has left: for the batch's slots, states after position n."""
        self.num_exit_states[slots] = num_states

    def can_resume(self, slots: np.ndarray, num_scheduled_tokens: np.ndarray) -> bool:
        """Whether each scheduled token has an exit state."""
        return self.use_exit_query_cache and bool(
            (num_scheduled_tokens <= self.num_exit_states[slots]).all()
        )

    def prepare_inputs(
        self, input_batch: InputBatch, req_states: RequestState
    ) -> dict[str, torch.Tensor | None]:
        """Name the exit states from which the forward resumes, if it does."""
        inputs = super().prepare_inputs(input_batch, req_states)
        if not self.resumes:
            return inputs
        num_tokens = input_batch.num_tokens_after_padding
        steps = torch.arange(num_tokens, device=self.device)
        starts = input_batch.query_start_loc[: input_batch.num_reqs + 1]
        rows = torch.searchsorted(starts[1:], steps, right=True, out_int32=True)
        rows.clamp_(max=input_batch.num_reqs - 1)
        steps -= starts[rows]
        slots = input_batch.idx_mapping[rows]
        exit_state = self.exit_query_cache.gather_slots(slots, steps)
        return {**inputs, "exit_state": exit_state}
