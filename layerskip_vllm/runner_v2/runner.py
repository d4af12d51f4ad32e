"""What a V2 model runner of vLLM's does differently under self-speculation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vllm.distributed.ec_transfer.ec_connector.metrics import ECConnectorStats
from vllm.forward_context import set_forward_context
from vllm.v1.outputs import ECConnectorOutput

from layerskip_vllm.config import OPTIONS_KEY
from layerskip_vllm.runner_v2.exit_observer import ExitObserver
from layerskip_vllm.runner_v2.graphs import VerifyGraphManager
from layerskip_vllm.runner_v2.model_state import LayerSkipModelState
from layerskip_vllm.runner_v2.speculator import LayerSkipSpeculator
from layerskip_vllm.runner_v2.step_times import StepTimes
from layerskip_vllm.scheduling.draft_order import draft_order_of
from layerskip_vllm.telemetry import StepStats
from layerskip_vllm.vllm_config.speculative_config import require_same_version

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
    from vllm.v1.worker.gpu.cudagraph_utils import ModelCudaGraphManager
    from vllm.v1.worker.gpu.input_batch import InputBatch
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner as Host
else:
    Host = object


class LayerSkipRunnerMixin(Host):
    """Put before a subclass of vLLM's `GPUModelRunner` (`vllm/v1/worker/gpu/model_runner.py`)."""

    model_state: LayerSkipModelState
    cudagraph_manager: ModelCudaGraphManager

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        require_same_version(vllm_config.speculative_config.package_version)
        super().__init__(vllm_config, device)
        self.speculator = LayerSkipSpeculator(
            vllm_config, device, self.req_states.last_sampled_tokens, self.input_buffers.seq_lens
        )
        self.num_resumed_tokens = 0
        self._step_stats = StepStats(0)
        self._step_times = StepTimes(device)
        self._observer = ExitObserver(self.speculator)

    def load_model(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Load as the host does, and show the speculator the exit query cache at once: memory is
        profiled before vLLM gives it the model's state.
        """
        super().load_model(*args, **kwargs)
        self.speculator.model_state = self.model_state

    @torch.inference_mode()
    def profile_run(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Profile as the host does, and compile the last segment: its forwards and those of a
        propose at the last exit are the whole model and the others.
        """
        self.speculator.exit_index = last = self.model.num_exits - 1
        super().profile_run(*args, **kwargs)
        slots = torch.full((self.max_num_reqs,), self.max_num_reqs, device=self.device)
        exit_state = self.model_state.exit_query_cache.gather_slots(slots, 1)
        with set_forward_context(None, self.vllm_config, num_tokens=len(slots)):
            self.model.run_remaining_layers(torch.zeros_like(slots), exit_state, last)
        self.speculator.exit_index = 0

    def initialize_kv_cache(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Put our manager of graphs in the place of the host's, which has captured nothing yet."""
        super().initialize_kv_cache(*args, **kwargs)
        theirs = self.cudagraph_manager
        self.cudagraph_manager = VerifyGraphManager(
            self.vllm_config,
            self.device,
            theirs.cudagraph_mode,
            theirs.decode_query_len,
            lora_capture_cases=theirs.lora_capture_cases,
        )
        self.model_state.graphs_resume = (
            self.model_state.use_exit_query_cache and theirs.cudagraph_mode.separate_routine()
        )
        if self.model_state.graphs_resume:
            self.cudagraph_manager.resume_at_every_exit(self.model.num_exits)

    def gather_batch_req_state(self, scheduler_output: SchedulerOutput, dummy_run: bool):  # type: ignore[no-untyped-def]
        """Find out whether the step may resume, before its graph is chosen.

        A graph of a uniform batch with drafts resumes, so a batch that cannot is not called uniform
        here: one whose weights were reloaded since it drafted, or of new requests that vLLM has
        padded with placeholders for drafts.
        """
        state, query_len = super().gather_batch_req_state(scheduler_output, dummy_run)
        model_state, order = self.model_state, draft_order_of(scheduler_output)
        # Early layers are compiled for token ids, and prompts may be embeddings.
        can_observe = state is not None and not self.uses_inputs_embeds
        model_state.observes = can_observe and order.observes
        model_state.may_resume = state is not None and model_state.have_exit_states(
            state.idx_mapping_np, state.num_scheduled_tokens
        )
        if isinstance(self.cudagraph_manager, VerifyGraphManager):
            self.cudagraph_manager.observes = model_state.observes and not model_state.may_resume
            self.cudagraph_manager.exit_index = (
                model_state.exit_index if model_state.may_resume else 0
            )
        if state is None:
            return state, query_len
        self.speculator.exit_index = order.exit_index
        self._step_stats = StepStats(state.num_tokens)
        self._step_times.start()
        if model_state.graphs_resume and query_len != 1 and not model_state.may_resume:
            query_len = None
        return state, query_len

    def sample(  # type: ignore[no-untyped-def]
        self,
        hidden_states: torch.Tensor,  # [num_tokens, hidden_size]
        input_batch: InputBatch,
        grammar_output: GrammarOutput | None,
    ):
        """Sample as the host does, and mark where verification ends; count what each exit would
        have drafted where the step looks.
        """
        sampled = super().sample(hidden_states, input_batch, grammar_output)
        if self.model_state.observes:
            normed_states = self.model_state.normed_states_of(input_batch)
            if normed_states:
                self._observer.count(normed_states, input_batch, *sampled[:2])
        self._step_times.sampled(input_batch.num_draft_tokens)
        return sampled

    def sample_tokens(self, grammar_output):  # type: ignore[no-untyped-def]
        """Let the step's numbers travel with its tokens, as on runner V1."""
        step_state = self.execute_model_state
        output = super().sample_tokens(grammar_output)
        if step_state is not None:
            self._step_times.end(step_state.num_spec_tokens_to_schedule)
        self._step_stats.seconds = self._step_times.take()
        self._step_stats.exit_matches = self._observer.take()
        self._step_stats.num_resumed_tokens = self.model_state.num_resumed_tokens
        self.num_resumed_tokens += self.model_state.num_resumed_tokens
        step = getattr(output, "model_runner_output", None)
        if step is not None:
            stats = ECConnectorStats({OPTIONS_KEY: self._step_stats.as_dict()})
            step.ec_connector_output = ECConnectorOutput(ec_connector_stats=stats)
        return output

    def reload_weights(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Reload as the host does, then forget what is left of the old weights."""
        super().reload_weights(*args, **kwargs)
        self.model_state.forget_exit_states()
        self.speculator.weights_changed()
