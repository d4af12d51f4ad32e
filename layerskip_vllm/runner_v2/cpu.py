"""vLLM's V2 CPU model runner with the LayerSkip cycle; it needs Triton for CPUs."""

from vllm.v1.worker.cpu.model_runner import CPUModelRunner

from layerskip_vllm.runner_v2.runner import LayerSkipRunnerMixin


class LayerSkipCPUModelRunner(LayerSkipRunnerMixin, CPUModelRunner):
    """vLLM's V2 CPU model runner with the LayerSkip cycle."""
