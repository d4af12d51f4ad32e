"""vLLM's V2 GPU model runner with the LayerSkip cycle."""

from vllm.v1.worker.gpu.model_runner import GPUModelRunner

from layerskip_vllm.runner_v2.runner import LayerSkipRunnerMixin


class LayerSkipCUDAModelRunner(LayerSkipRunnerMixin, GPUModelRunner):
    """vLLM's V2 GPU model runner with the LayerSkip cycle."""
