"""Self-speculation on vLLM's CPU worker (`vllm/v1/worker/cpu_worker.py`)."""

from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from layerskip_vllm.worker.runner import LayerSkipRunnerMixin


class LayerSkipCPUModelRunner(LayerSkipRunnerMixin, CPUModelRunner):
    """vLLM's CPU model runner with the LayerSkip cycle."""


class LayerSkipCPUWorker(CPUWorker):
    """vLLM's CPU worker with that runner."""

    def init_device(self) -> None:
        """Initialise as the host does, then replace its runner, which holds nothing yet."""
        super().init_device()
        self.model_runner = LayerSkipCPUModelRunner(self.vllm_config, self.device)
