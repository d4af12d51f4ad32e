"""Llama 1, 2, 3, CodeLlama and SmolLM2: every published LayerSkip checkpoint is one."""

from vllm.model_executor.models.llama import LlamaForCausalLM

from layerskip_vllm.models.early_exit import EarlyExitMixin
from layerskip_vllm.models.split import SplitForwardMixin


class LayerSkipLlamaForCausalLM(SplitForwardMixin, LlamaForCausalLM):
    """vLLM's `LlamaForCausalLM` with its forward split at the exit layer."""


class EarlyExitLlamaForCausalLM(EarlyExitMixin, LlamaForCausalLM):
    """vLLM's `LlamaForCausalLM` from the first layers of a deeper checkpoint."""
