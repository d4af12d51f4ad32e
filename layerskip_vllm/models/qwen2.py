"""Qwen2 and Qwen2.5: Llama with biases on queries, keys and values."""

from vllm.model_executor.models.interfaces import LocalArgmaxMixin
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM

from layerskip_vllm.models.early_exit import EarlyExitMixin
from layerskip_vllm.models.split import SplitForwardMixin


class LayerSkipQwen2ForCausalLM(SplitForwardMixin, LocalArgmaxMixin, Qwen2ForCausalLM):
    """vLLM's `Qwen2ForCausalLM` with its forward split at the exit layer.

    `use_local_argmax_reduction` needs `LocalArgmaxMixin` on a draft; vLLM's classes of the other
    families already have it.
    """


class EarlyExitQwen2ForCausalLM(EarlyExitMixin, Qwen2ForCausalLM):
    """vLLM's `Qwen2ForCausalLM` cut to its first layers."""
