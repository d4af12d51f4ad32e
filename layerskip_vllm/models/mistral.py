"""Mistral: Llama with sliding-window attention in v0.1."""

from vllm.model_executor.models.mistral import MistralForCausalLM

from layerskip_vllm.models.early_exit import EarlyExitMixin
from layerskip_vllm.models.split import SplitForwardMixin


class LayerSkipMistralForCausalLM(SplitForwardMixin, MistralForCausalLM):
    """vLLM's `MistralForCausalLM` with its forward split at the exit layer."""


class EarlyExitMistralForCausalLM(EarlyExitMixin, MistralForCausalLM):
    """vLLM's `MistralForCausalLM` cut to its first layers."""
