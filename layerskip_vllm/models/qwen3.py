"""Dense Qwen3: Llama with norms on queries and keys."""

from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM

from layerskip_vllm.models.early_exit import EarlyExitMixin
from layerskip_vllm.models.split import SplitForwardMixin


class LayerSkipQwen3ForCausalLM(SplitForwardMixin, Qwen3ForCausalLM):
    """vLLM's `Qwen3ForCausalLM` with its forward split at the exit layer."""


class EarlyExitQwen3ForCausalLM(EarlyExitMixin, Qwen3ForCausalLM):
    """vLLM's `Qwen3ForCausalLM` cut to its first layers."""
