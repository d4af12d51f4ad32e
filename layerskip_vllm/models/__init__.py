"""Model classes of the plugin, two per family; this table imports no vLLM."""

SUPPORTED_ARCHITECTURES = {
    "LlamaForCausalLM": "layerskip_vllm.models.llama",
    "MistralForCausalLM": "layerskip_vllm.models.mistral",
    "Qwen2ForCausalLM": "layerskip_vllm.models.qwen2",
    "Qwen3ForCausalLM": "layerskip_vllm.models.qwen3",
}
"""Architecture in the checkpoint's config.json -> module of its two counterparts."""


def layerskip_architecture(architecture: str) -> str:
    """Return the name of the class with a split forward, in its module and in vLLM's registry."""
    return f"LayerSkip{architecture}"


def early_exit_architecture(architecture: str) -> str:
    """Return the name of the class that ends early, in its module and in vLLM's registry."""
    return f"EarlyExit{architecture}"
