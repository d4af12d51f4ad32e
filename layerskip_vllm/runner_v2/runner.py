"""What a V2 model runner of vLLM's does differently under self-speculation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.distributed.ec_transfer.ec_connector.metrics import ECConnectorStats
from vllm.v1.outputs import ECConnectorOutput

from layerskip_vllm.config import OPTIONS_KEY
from layerskip_vllm.runner_v2.model_state import LayerSkipModelState
from layerskip_vllm.runner_v2.speculator import LayerSkipSpeculator
from layerskip_vllm.telemetry import StepStats

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner as Host
else:
    Host = object


class LayerSkipRunnerMixin(Host):
    """Put before a subclass of vLLM's `GPUModelRunner` (`vllm/v1/worker/gpu/model_runner.py`)."""

    model_state: LayerSkipModelState

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        super().__init__(vllm_config, device)
        self.speculator = LayerSkipSpeculator(vllm_config, device)
        self.num_resumed_tokens = 0
        self._step_stats = StepStats(0)

    def load_model(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Load as the host does, and show the speculator the exit query cache at once: memory is
        profiled before vLLM gives it the model's state.
        """
        super().load_model(*args, **kwargs)
        self.speculator.model_state = self.model_state

    def gather_batch_req_state(self, scheduler_output: SchedulerOutput, dummy_run: bool):  # type: ignore[no-untyped-def]
        """Decide whether the step resumes, before its graph is chosen."""
        state, uniform_token_count = super().gather_batch_req_state(scheduler_output, dummy_run)
        self.model_state.resumes = False
        if state is None:
            return state, uniform_token_count
        self._step_stats = StepStats(state.num_tokens)
        if scheduler_output.scheduled_spec_decode_tokens and self.model_state.can_resume(
            state.idx_mapping_np, state.num_scheduled_tokens
        ):
            self.model_state.resumes = True
            self.num_resumed_tokens += state.num_tokens
            self._step_stats.num_resumed_tokens = state.num_tokens
        return state, uniform_token_count

    def sample_tokens(self, grammar_output):  # type: ignore[no-untyped-def]
        """Let the step's numbers travel with its tokens, as on runner V1."""
        output = super().sample_tokens(grammar_output)
        step = getattr(output, "model_runner_output", None)
        if step is not None:
            stats = ECConnectorStats({OPTIONS_KEY: self._step_stats.as_dict()})
            step.ec_connector_output = ECConnectorOutput(ec_connector_stats=stats)
        return output
