"""Self-speculation on vLLM's CPU worker (`vllm/v1/worker/cpu_worker.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.v1.worker.cpu_worker import CPUWorker

from layerskip_vllm.compat import worker
from layerskip_vllm.compat.install import install_hooks
from layerskip_vllm.workers.untrue_warning import without_untrue_warning

if TYPE_CHECKING:
    from layerskip_vllm.runner_v1.cpu import LayerSkipCPUModelRunner as RunnerV1
    from layerskip_vllm.runner_v2.cpu import LayerSkipCPUModelRunner as RunnerV2


class LayerSkipCPUWorker(CPUWorker):
    """vLLM's CPU worker with our model runner."""

    def init_device(self) -> None:
        """Initialise as the host does, then replace its runner, which holds nothing yet."""
        install_hooks(worker)
        with without_untrue_warning():
            super().init_device()
            self.model_runner = self._make_runner()

    def _make_runner(self) -> RunnerV1 | RunnerV2:
        if self.use_v2_model_runner:
            from layerskip_vllm.runner_v2.cpu import LayerSkipCPUModelRunner as RunnerV2

            return RunnerV2(self.vllm_config, self.device)
        from layerskip_vllm.runner_v1.cpu import LayerSkipCPUModelRunner as RunnerV1

        return RunnerV1(self.vllm_config, self.device)
