"""LayerSkip self-speculative decoding for vLLM (arXiv 2404.16710)."""

from layerskip_vllm.config import LayerSkipConfig
from layerskip_vllm.version import __version__

__all__ = ["LayerSkipConfig", "__version__"]
