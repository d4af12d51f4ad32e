"""The split forward, one small class a family; this table imports no vLLM."""

SUPPORTED_ARCHITECTURES = {
    "LlamaForCausalLM": "layerskip_vllm.models.llama:LayerSkipLlamaForCausalLM",
}
"""Architecture in the checkpoint's config.json -> `module:Class` of its LayerSkip counterpart."""


def layerskip_architecture(architecture: str) -> str:
    """Name under which a supported architecture's split class is registered with vLLM."""
    return SUPPORTED_ARCHITECTURES[architecture].partition(":")[2]
