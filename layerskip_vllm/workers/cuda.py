"""Self-speculation on vLLM's CUDA worker (`vllm/v1/worker/gpu_worker.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.v1.worker.gpu_worker import Worker

from layerskip_vllm.compat import worker
from layerskip_vllm.compat.install import install_hooks
from layerskip_vllm.workers.untrue_warning import without_untrue_warning

if TYPE_CHECKING:
    from layerskip_vllm.runner_v1.cuda import LayerSkipCUDAModelRunner as RunnerV1
    from layerskip_vllm.runner_v2.cuda import LayerSkipCUDAModelRunner as RunnerV2


class LayerSkipCUDAWorker(Worker):
    """vLLM's GPU worker with our model runner."""

    def _make_model_runner(self) -> RunnerV1 | RunnerV2:
        install_hooks(worker)
        if self.use_v2_model_runner:
            from layerskip_vllm.runner_v2.cuda import LayerSkipCUDAModelRunner as RunnerV2

            return RunnerV2(self.vllm_config, self.device)
        from layerskip_vllm.runner_v1.cuda import LayerSkipCUDAModelRunner as RunnerV1

        with without_untrue_warning():
            return RunnerV1(self.vllm_config, self.device)
