"""The model classes of the plugin, two a family; this table imports no vLLM."""

SUPPORTED_ARCHITECTURES = {
    "LlamaForCausalLM": "layerskip_vllm.models.llama",
    "MistralForCausalLM": "layerskip_vllm.models.mistral",
    "Qwen2ForCausalLM": "layerskip_vllm.models.qwen2",
    "Qwen3ForCausalLM": "layerskip_vllm.models.qwen3",
}
"""Architecture in the checkpoint's config.json -> module that holds its two counterparts."""


def layerskip_architecture(architecture: str) -> str:
    """Name of a supported architecture's class whose forward is split, in module and registry."""
    return f"LayerSkip{architecture}"


def early_exit_architecture(architecture: str) -> str:
    """Name of a supported architecture's class that ends early, in module and registry."""
    return f"EarlyExit{architecture}"
