"""Self-speculation on vLLM's CUDA worker (`vllm/v1/worker/gpu_worker.py`)."""

from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker

from layerskip_vllm.compat import worker
from layerskip_vllm.compat.install import install_hooks
from layerskip_vllm.runner_v1.runner import LayerSkipRunnerMixin


class LayerSkipCUDAModelRunner(LayerSkipRunnerMixin, GPUModelRunner):
    """vLLM's V1 GPU model runner with the LayerSkip cycle."""


class LayerSkipCUDAWorker(Worker):
    """vLLM's GPU worker with that runner."""

    def _make_model_runner(self) -> LayerSkipCUDAModelRunner:
        install_hooks(worker)
        return LayerSkipCUDAModelRunner(self.vllm_config, self.device)
