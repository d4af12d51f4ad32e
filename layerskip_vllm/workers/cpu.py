"""Self-speculation on vLLM's CPU worker (`vllm/v1/worker/cpu_worker.py`)."""

from __future__ import annotations

from vllm.v1.worker.cpu_worker import CPUWorker

from layerskip_vllm.compat import worker
from layerskip_vllm.compat.install import install_hooks


class LayerSkipCPUWorker(CPUWorker):
    """vLLM's CPU worker with our model runner."""

    def init_device(self) -> None:
        """Initialise as the host does, then replace its runner, which holds nothing yet."""
        install_hooks(worker)
        super().init_device()
        if self.use_v2_model_runner:
            from layerskip_vllm.runner_v2.cpu import LayerSkipCPUModelRunner as RunnerV2

            self.model_runner = RunnerV2(self.vllm_config, self.device)
        else:
            from layerskip_vllm.runner_v1.cpu import LayerSkipCPUModelRunner as RunnerV1

            self.model_runner = RunnerV1(self.vllm_config, self.device)
