"""vLLM chooses model runner V1 for `self:E` where the plugin has chosen it.

Target: vllm.config:VllmConfig._get_v2_model_runner_unsupported_features
Reason: vLLM prefers V2 wherever Triton works. This includes CPUs, where V1 is faster, and LoRA,
    which `self:E` supports on V1 alone. vLLM rules out V2 for a speculative method by its name;
    ours is called `draft_model`, which V2 supports.
How: Calls the original. If the speculative configuration is ours and not for V2, appends
    `LayerSkip self-speculation here`; vLLM then chooses V1.
Upstream: 0003-v1-only-speculative-config.patch asks the speculative configuration itself.
May go: When the oldest supported vLLM asks the speculative configuration, or with runner V1.
"""

from __future__ import annotations

from collections.abc import Callable

from vllm.config import VllmConfig

from layerskip_vllm.compat.releases import is_supported_vllm
from layerskip_vllm.compat.wrapping import wrap


def is_needed() -> bool:
    """By release: no vLLM knows our method by name."""
    return is_supported_vllm()


def install() -> None:
    """Wrap the method that lists what V2 lacks."""
    wrap(VllmConfig, "_get_v2_model_runner_unsupported_features", _unsupported_features)


def _unsupported_features(
    original: Callable[[VllmConfig], list[str]], vllm_config: VllmConfig
) -> list[str]:
    is_v1 = getattr(vllm_config.speculative_config, "on_runner_v2", None) is False
    return original(vllm_config) + (["LayerSkip self-speculation here"] if is_v1 else [])
