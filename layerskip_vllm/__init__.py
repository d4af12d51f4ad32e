"""LayerSkip self-speculative decoding for vLLM (arXiv 2404.16710)."""

from layerskip_vllm.config import LayerSkipConfig

__version__ = "0.1.0"

__all__ = ["LayerSkipConfig", "__version__"]
