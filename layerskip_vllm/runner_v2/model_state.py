"""Which requests have exit states, and how the target's forward resumes from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from layerskip_vllm.runner_v2.passing_states import PassingStates
from layerskip_vllm.runner_v2.verifier import Verifier
from layerskip_vllm.spec_decode.draft_batch import entries_of
from layerskip_vllm.spec_decode.exit_query_cache import ExitQueryCache

if TYPE_CHECKING:
    from torch import nn
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import NewRequestData
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.mm.encoder_cache import EncoderCache
    from vllm.v1.worker.gpu.sample.sampler import Sampler
    from vllm.v1.worker.gpu.states import RequestState


class LayerSkipModelState(DefaultModelState):
    """vLLM's state of a decoder, and the exit query cache by request slot.

    The host knows which tokens have exit states: those on which propose ran, whatever they are.
    """

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
            self.max_num_reqs + 1,  # the last one's states are nobody's
            speculative_config.num_speculative_tokens,
            self.model_config.get_hidden_size(),
            self.dtype,
            device,
        )
        self.passing_states: PassingStates | None = None
        """Where there are several exits; rows as in the exit query cache."""
        if len(speculative_config.layerskip.exits) > 1 and self.use_exit_query_cache:
            self.passing_states = PassingStates(
                len(speculative_config.layerskip.exit_layers),
                self.max_num_reqs + 1,
                speculative_config.num_speculative_tokens,
                self.model_config.get_hidden_size(),
                self.dtype,
                device,
            )
        self.num_exit_states = np.zeros(self.max_num_reqs, np.int64)
        """[max_num_reqs], by slot: tokens after the computed ones that have an exit state."""
        self._exit_of = np.zeros(self.max_num_reqs, np.int64)
        """[max_num_reqs], by slot: which exit has left the states."""
        self.exit_index = 0
        """From which exit's states the step that is being prepared resumes, if it may."""
        self.observes = False
        """Whether that step looks at every exit."""
        self.normed_states: list[torch.Tensor] = []
        """[num_rows, hidden_size] at each exit, of the rows that are sampled, if it does."""
        self.graphs_resume = False
        """Whether graphs of a uniform batch with drafts run the remaining layers alone."""
        self.may_resume = False
        """Whether each token of the step that is being prepared has an exit state."""
        self.num_resumed_tokens = 0
        """Of the step that was prepared last."""
        self._slots = torch.full((self.max_num_reqs,), self.max_num_reqs, device=device)
        """[max_num_reqs], int64: the slot of each row; graphs read it at this address."""
        self._cudagraph_mode = self._captured_mode = CUDAGraphMode.NONE
        self._captured_exit = 0

    def custom_sampler(self, sampler: Sampler) -> tuple[Sampler, Verifier]:
        """Verify by our sampler; plain steps keep the host's."""
        return sampler, Verifier(sampler, self.vllm_config.speculative_config, self.device)

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        """A request that is new, or comes back from preemption, has no exit states."""
        super().add_request(req_index, new_req_data)
        self.num_exit_states[req_index] = 0

    def set_exit_states(
        self, slots: np.ndarray, num_states: int | np.ndarray, exit_index: int = 0
    ) -> None:
        """Record what propose has left: for the batch's slots, states after position n."""
        self.num_exit_states[slots] = num_states
        self._exit_of[slots] = exit_index

    def forget_exit_states(self) -> None:
        """Let the next step of each request run the full forward."""
        self.num_exit_states.fill(0)

    def have_exit_states(self, slots: np.ndarray, num_scheduled_tokens: np.ndarray) -> bool:
        """Whether each scheduled token has an exit state, all of one exit; notes which one.

        A request that a step has left out has states of an earlier choice.
        """
        exits = self._exit_of[slots]
        self.exit_index = int(exits[0])
        return self.use_exit_query_cache and bool(
            (num_scheduled_tokens <= self.num_exit_states[slots]).all()
            and (exits == exits[0]).all()
        )

    def prepare_attn(  # type: ignore[no-untyped-def]
        self, input_batch: InputBatch, cudagraph_mode: CUDAGraphMode, *args, **kwargs
    ) -> dict[str, Any]:
        """Prepare as the host does; this is also where a step tells how it will run."""
        self._cudagraph_mode = cudagraph_mode
        return super().prepare_attn(input_batch, cudagraph_mode, *args, **kwargs)

    def prepare_inputs(
        self, input_batch: InputBatch, req_states: RequestState
    ) -> dict[str, torch.Tensor | None]:
        """Name the exit states from which the forward resumes, if it does.

        A piecewise graph is one of the full forward, which is always right.
        """
        inputs: dict[str, Any] = super().prepare_inputs(input_batch, req_states)
        self.num_resumed_tokens = 0
        if self.observes and not self.may_resume:
            inputs["observe"] = partial(self._keep_rows, input_batch.logits_indices)
        elif self._cudagraph_mode == CUDAGraphMode.FULL:
            if self._graph_resumes(input_batch.num_reqs, input_batch.num_tokens):
                self._slots[: input_batch.num_reqs] = input_batch.idx_mapping
                self._slots[input_batch.num_reqs :] = self.max_num_reqs
                self.num_resumed_tokens = input_batch.num_tokens
        elif self._cudagraph_mode == CUDAGraphMode.NONE and self.may_resume:
            entries = entries_of(input_batch.idx_mapping_np, input_batch.num_scheduled_tokens)
            inputs["exit_state"] = partial(self.exit_query_cache.gather, entries)
            inputs["exit_index"] = self.exit_index
            if self.passing_states is not None:
                inputs["observe"] = self.passing_states.at(entries).store
            self.num_resumed_tokens = input_batch.num_tokens
        return inputs

    def normed_states_of(self, input_batch: InputBatch) -> list[torch.Tensor]:
        """What an observing step sees after each exit layer: [num_rows, hidden_size], of the rows
        that are sampled.
        """
        if self.num_resumed_tokens and self.passing_states is not None:
            entries = entries_of(input_batch.idx_mapping_np, input_batch.num_scheduled_tokens)
            return self.passing_states.at(entries).rows(input_batch.logits_indices)
        normed_states, self.normed_states = self.normed_states, []
        return normed_states

    def _keep_rows(self, rows: torch.Tensor, exit_index: int, normed_states: torch.Tensor) -> None:
        del self.normed_states[exit_index:]
        self.normed_states.append(normed_states[rows])

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        """Inputs of a graph that is captured; one that resumes reads the slots of its rows."""
        inputs = super().prepare_dummy_inputs(num_reqs, num_tokens)
        is_full = self._captured_mode == CUDAGraphMode.FULL
        if is_full and self._graph_resumes(num_reqs, num_tokens):
            slots = self._slots[:num_reqs]
            num_states = num_tokens // num_reqs
            inputs["exit_state"] = partial(self.exit_query_cache.gather_slots, slots, num_states)
            inputs["exit_index"] = self._captured_exit
            if self.passing_states is not None:
                inputs["observe"] = partial(self.passing_states.store_verified, slots)
        return inputs

    @contextmanager
    def capturing(self, mode: CUDAGraphMode, exit_index: int) -> Iterator[None]:
        """Say which graphs are captured meanwhile."""
        self._captured_mode, self._captured_exit = mode, exit_index
        yield
        self._captured_mode = CUDAGraphMode.NONE

    def _graph_resumes(self, num_reqs: int, num_tokens: int) -> bool:
        """Whether the FULL graph of such a uniform batch resumes; one without drafts does not: it
        serves steps of plain decoding, before which nothing was proposed.
        """
        return self.graphs_resume and num_tokens > num_reqs
