"""vLLM's V1 GPU model runner with the LayerSkip cycle."""

from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from layerskip_vllm.runner_v1.runner import LayerSkipRunnerMixin


class LayerSkipCUDAModelRunner(LayerSkipRunnerMixin, GPUModelRunner):
    """vLLM's V1 GPU model runner with the LayerSkip cycle."""
