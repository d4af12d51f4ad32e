"""Every touch on vLLM at run time; `patches/README.md` is their ledger."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING

from vllm import SamplingParams
from vllm.config import ModelConfig, ParallelConfig, SpeculativeConfig, VllmConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.model_executor.models import ModelRegistry

from layerskip_vllm import early_exit
from layerskip_vllm import engine_args as layerskip_engine_args
from layerskip_vllm.cli_args import add_cli_args
from layerskip_vllm.models import (
    SUPPORTED_ARCHITECTURES,
    early_exit_architecture,
    layerskip_architecture,
)
from layerskip_vllm.wrapping import wrap

if TYPE_CHECKING:
    from vllm.utils.argparse_utils import FlexibleArgumentParser


def register_models() -> None:
    """Make vLLM know our architectures; the module of each loads when it is used."""
    known = ModelRegistry.get_supported_archs()
    for architecture, module in SUPPORTED_ARCHITECTURES.items():
        for name in (layerskip_architecture(architecture), early_exit_architecture(architecture)):
            if name not in known:
                ModelRegistry.register_model(name, f"{module}:{name}")


def install() -> None:
    """Install the hooks. Idempotent."""
    for host, name, wrapper in HOOKS:
        wrap(host, name, wrapper)


def _add_cli_args(
    original: Callable[..., FlexibleArgumentParser], parser: FlexibleArgumentParser
) -> FlexibleArgumentParser:
    return add_cli_args(original(parser))


def _create_speculative_config(
    original: Callable[..., SpeculativeConfig | None],
    engine_args: EngineArgs,
    target_model_config: ModelConfig,
    target_parallel_config: ParallelConfig,
) -> SpeculativeConfig | None:
    if layerskip_engine_args.asks_for_self_speculation(engine_args):
        return layerskip_engine_args.create_speculative_config(
            engine_args, target_model_config, target_parallel_config
        )
    early_exit.cut_model(engine_args, target_model_config)
    return original(engine_args, target_model_config, target_parallel_config)


def _v2_model_runner_unsupported_features(
    original: Callable[[VllmConfig], list[str]], vllm_config: VllmConfig
) -> list[str]:
    ours = hasattr(vllm_config.speculative_config, "layerskip")
    return original(vllm_config) + (["LayerSkip self-speculation"] if ours else [])


def _validate_spec_decode(
    original: Callable[[SamplingParams, SpeculativeConfig | None], None],
    sampling_params: SamplingParams,
    speculative_config: SpeculativeConfig | None,
) -> None:
    if hasattr(speculative_config, "layerskip"):
        if sampling_params.logprob_token_ids:
            # vLLM gathers these where it samples plainly only: in a batch with drafts and another
            # request's logprobs, the shapes do not fit and the engine dies.
            raise VLLMValidationError(
                "logprob_token_ids is not supported with self-speculation (self:E)"
            )
        # The original refuses logit_bias, which our rejection sampler applies. What else it
        # refuses stays refused.
        sampling_params = copy(sampling_params)
        sampling_params.logit_bias = None
    original(sampling_params, speculative_config)


HOOKS: tuple[tuple[type, str, Callable], ...] = (
    (EngineArgs, "add_cli_args", _add_cli_args),
    (EngineArgs, "create_speculative_config", _create_speculative_config),
    (
        VllmConfig,
        "_get_v2_model_runner_unsupported_features",
        _v2_model_runner_unsupported_features,
    ),
    (SamplingParams, "_validate_spec_decode", _validate_spec_decode),
)
