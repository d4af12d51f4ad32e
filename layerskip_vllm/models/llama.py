"""Llama 1, 2, 3, CodeLlama and SmolLM2; all published LayerSkip checkpoints are Llama."""

from vllm.model_executor.models.llama import LlamaForCausalLM

from layerskip_vllm.models.early_exit import EarlyExitMixin
from layerskip_vllm.models.split import SplitForwardMixin


class LayerSkipLlamaForCausalLM(SplitForwardMixin, LlamaForCausalLM):
    """vLLM's `LlamaForCausalLM` with its forward split at the exit layer."""


class EarlyExitLlamaForCausalLM(EarlyExitMixin, LlamaForCausalLM):
    """vLLM's `LlamaForCausalLM` cut to its first layers."""
