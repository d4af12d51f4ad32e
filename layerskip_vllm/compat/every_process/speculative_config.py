"""`self:E` becomes a speculative configuration, and `early_exit` a model of fewer layers.

Target: vllm.engine.arg_utils:EngineArgs.create_speculative_config
Reason: `SpeculativeConfig` takes `self:E` for the name of a checkpoint and tries to load it. This
    is also the last point at which we can set worker class, scheduling and CUDA graphs, and at
    which an error reaches the user before any engine process starts. For early exit, the model's
    depth is known here, and no feature that we admit has used it yet.
How: With `self:E`, returns a `LayerSkipSpeculativeConfig` and does not call the original. Without
    it, refuses options in `additional_config["layerskip"]` that would have no effect. If the
    options set `early_exit`, cuts the model's configuration to its first N layers. Then calls the
    original.
Upstream: 0002-speculative-config-factory.patch lets a plugin register such a function;
    0006-llama-first-layers.patch serves early exit for Llama without a plugin.
May go: When the oldest supported vLLM lets plugins create speculative configurations.
"""

from __future__ import annotations

from collections.abc import Callable

from vllm.config import ModelConfig, ParallelConfig, SpeculativeConfig
from vllm.engine.arg_utils import EngineArgs

from layerskip_vllm.compat.releases import is_supported_vllm
from layerskip_vllm.compat.wrapping import wrap
from layerskip_vllm.vllm_config import early_exit, self_speculation


def is_needed() -> bool:
    """By release: a probe would need the whole configuration of a model."""
    return is_supported_vllm()


def install() -> None:
    """Wrap the method that creates the speculative configuration."""
    wrap(EngineArgs, "create_speculative_config", _create_speculative_config)


def _create_speculative_config(
    original: Callable[..., SpeculativeConfig | None],
    engine_args: EngineArgs,
    target_model_config: ModelConfig,
    target_parallel_config: ParallelConfig,
) -> SpeculativeConfig | None:
    arguments = (engine_args, target_model_config, target_parallel_config)
    if self_speculation.asks_for_self_speculation(engine_args):
        return self_speculation.create_speculative_config(*arguments)
    early_exit.cut_model(engine_args, target_model_config)
    return original(*arguments)
