"""vLLM chooses model runner V1 for `self:E`.

Target: vllm.config:VllmConfig._get_v2_model_runner_unsupported_features
Reason: The runner is written for V1. vLLM prefers V2 where Triton works, and knows unsupported
    speculation by the method's name; ours is called `draft_model`, which V2 supports.
How: Calls the original and appends `LayerSkip self-speculation` where the speculative configuration
    is ours. vLLM then chooses V1, and refuses where V2 is forced.
Upstream: 0003-v1-only-speculative-config.patch asks the speculative configuration itself.
May go: When the oldest supported vLLM asks, or when the plugin supports V2.
"""

from __future__ import annotations

from collections.abc import Callable

from vllm.config import VllmConfig

from layerskip_vllm.compat.releases import is_supported_vllm
from layerskip_vllm.compat.wrapping import wrap
from layerskip_vllm.vllm_config.runner import uses_runner_v2


def is_needed() -> bool:
    """By release: what vLLM lacks here is our own method's name."""
    return is_supported_vllm()


def install() -> None:
    """Wrap the method that lists what V2 lacks."""
    wrap(VllmConfig, "_get_v2_model_runner_unsupported_features", _unsupported_features)


def _unsupported_features(
    original: Callable[[VllmConfig], list[str]], vllm_config: VllmConfig
) -> list[str]:
    ours = hasattr(vllm_config.speculative_config, "layerskip") and not uses_runner_v2()
    return original(vllm_config) + (["LayerSkip self-speculation"] if ours else [])
