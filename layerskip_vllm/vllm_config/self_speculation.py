"""Translates `self:E` and `self:auto` into vLLM's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import ValidationError
from vllm.config import ModelConfig, ParallelConfig, SpeculativeConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.logger import init_logger
from vllm.platforms import current_platform
from vllm.v1.spec_decode.dynamic.utils import validate_and_normalize_dynamic_sd_schedule

from layerskip_vllm.config import (
    DEFAULT_NUM_SPECULATIVE_TOKENS,
    OPTIONS_KEY,
    LayerSkipConfig,
    check_num_speculative_tokens,
    is_self_model,
    parse_exit_layer,
)
from layerskip_vllm.models import SUPPORTED_ARCHITECTURES
from layerskip_vllm.vllm_config import auto
from layerskip_vllm.vllm_config.runner import uses_runner_v2
from layerskip_vllm.vllm_config.unsupported import (
    QUANTIZATIONS,
    SCHEDULER_CLASS,
    SELF_SPECULATION_UNSUPPORTED,
    refuse_partial_heads,
    refuse_unsupported,
    share_kv_cache_group,
)

if TYPE_CHECKING:
    from vllm.engine.arg_utils import EngineArgs

logger = init_logger(f"vllm.{__name__}")

WORKER_CLASSES = {
    "cpu": "layerskip_vllm.workers.cpu.LayerSkipCPUWorker",
    "cuda": "layerskip_vllm.workers.cuda.LayerSkipCUDAWorker",
}

SPECULATIVE_KEYS = (
    "model",
    "num_speculative_tokens",
    "num_speculative_tokens_per_batch_size",
    "draft_sample_method",
    "use_local_argmax_reduction",
)
"""Keys of `--speculative-config` that self-speculation takes; the others describe a second
model."""

FEATURE = "self-speculation (self:E)"


def asks_for_self_speculation(engine_args: EngineArgs) -> bool:
    """Whether a flag or `speculative_config` names `self:...` as the speculative model."""
    in_config = (engine_args.speculative_config or {}).get("model")
    return is_self_model(engine_args.spec_model) or is_self_model(in_config)


def create_speculative_config(
    engine_args: EngineArgs,
    target_model_config: ModelConfig,
    target_parallel_config: ParallelConfig,
) -> SpeculativeConfig:
    """Translate `self:E`, and set the architecture, worker and scheduler that it needs.

    vLLM calls this through `EngineArgs.create_speculative_config`: after it makes the model's and
    the parallel configuration, before the scheduler's. It runs in the process that the user
    started, so errors show before any engine process starts or weight loads.

    Raises:
        ValueError: A value is out of range, contradicts another, or is unsupported.
    """
    settings = _merged_settings(engine_args)
    layerskip, layers, vocabulary = _exits(settings, engine_args, target_model_config)
    _refuse(engine_args, target_model_config, settings, layerskip)
    target_parallel_config.worker_cls = _worker_class()
    engine_args.scheduler_cls = SCHEDULER_CLASS
    share_kv_cache_group(engine_args, target_model_config, feature=FEATURE)
    on_runner_v2 = uses_runner_v2(engine_args)
    if not on_runner_v2:
        engine_args.async_scheduling = False
    if current_platform.is_cuda() and not on_runner_v2:
        # V1's graphs know one shape of batch, and drafts have another than what verifies them.
        engine_args.compilation_config.cudagraph_mode = CUDAGraphMode.NONE
    speculative_config = _build(
        settings | {"on_runner_v2": on_runner_v2},
        layerskip,
        target_model_config,
        target_parallel_config,
    )
    logger.info(
        "LayerSkip: %s draft K=%d tokens%s, exit query cache %s; "
        "architecture %s, worker %s, model runner %s",
        layers,
        speculative_config.num_speculative_tokens,
        vocabulary,
        "on" if layerskip.exit_query_cache else "off",
        target_model_config.architecture,
        target_parallel_config.worker_cls,
        "V2" if on_runner_v2 else "V1 without CUDA graphs and asynchronous scheduling",
    )
    return speculative_config


def _exits(
    settings: dict, engine_args: EngineArgs, model_config: ModelConfig
) -> tuple[LayerSkipConfig, str, str]:
    """Read the exit layer, or find what `self:auto` starts with; and describe it for the log.

    Sets K of `self:auto` where the user does not.
    """
    options = layerskip_options(engine_args) or {}
    num_layers = num_layers_of(model_config, feature=FEATURE)
    exit_layer = parse_exit_layer(settings["model"])
    if exit_layer is not None:
        layerskip = LayerSkipConfig.from_options(exit_layer, num_layers, options)
        layerskip = auto.with_head_cost(layerskip, model_config)
        return layerskip, f"layers [0, {exit_layer}) of {num_layers}", ""
    has_schedule = settings.get("num_speculative_tokens_per_batch_size") is not None
    given = _num_speculative_tokens_of(settings) if has_schedule else _given_k(settings)
    found = auto.find(engine_args, model_config, num_layers, given, options)
    if not has_schedule:
        settings.setdefault("num_speculative_tokens", found.num_speculative_tokens)
    return found.layerskip, found.layers, found.vocabulary


def _given_k(settings: dict) -> int | None:
    given = settings.get("num_speculative_tokens")
    return None if given is None else check_num_speculative_tokens(given)


def _refuse(
    engine_args: EngineArgs,
    target_model_config: ModelConfig,
    settings: dict,
    layerskip: LayerSkipConfig,
) -> None:
    refuse_unsupported(
        engine_args,
        target_model_config,
        SELF_SPECULATION_UNSUPPORTED,
        QUANTIZATIONS,
        feature=FEATURE,
    )
    if engine_args.enable_lora:
        refuse_partial_heads(settings, layerskip, feature=FEATURE)
    if layerskip.draft_vocab_size is not None and not layerskip.may_drop_vocab:
        from layerskip_vllm.spec_decode.draft_vocabulary import draft_token_ids

        draft_token_ids(layerskip, target_model_config)  # checks early; the worker builds it


def _build(
    settings: dict,
    layerskip: LayerSkipConfig,
    target_model_config: ModelConfig,
    target_parallel_config: ParallelConfig,
) -> SpeculativeConfig:
    from layerskip_vllm.vllm_config.speculative_config import LayerSkipSpeculativeConfig

    num_speculative_tokens = _num_speculative_tokens_of(settings)
    try:
        return LayerSkipSpeculativeConfig(
            **(settings | {"num_speculative_tokens": num_speculative_tokens}),
            layerskip=layerskip,
            target_model_config=target_model_config,
            target_parallel_config=target_parallel_config,
        )
    except ValidationError as error:
        # Pydantic's message ends with a link; ours ends with the fault.
        raise ValueError(f"speculative_config: {describe_faults(error)}") from None


def describe_faults(error: ValidationError) -> str:
    """Describe all faults that pydantic found, on one line."""
    return "; ".join(map(_fault, error.errors()))


def _fault(error: Mapping) -> str:
    """Describe a fault, with its field if there is one."""
    field = f"{'.'.join(map(str, error['loc']))}={error['input']!r}: " if error["loc"] else ""
    return field + error["msg"].removeprefix("Value error, ")


def _num_speculative_tokens_of(settings: dict) -> int:
    """Return the given K, else the largest K of a schedule by batch size, else the default."""
    schedule = settings.get("num_speculative_tokens_per_batch_size")
    if schedule is None:
        given = settings.get("num_speculative_tokens", DEFAULT_NUM_SPECULATIVE_TOKENS)
        return check_num_speculative_tokens(given)
    try:
        largest = max(k for _, _, k in validate_and_normalize_dynamic_sd_schedule(schedule))
    except (OverflowError, TypeError, ValueError) as error:  # JSON allows Infinity
        raise ValueError(f"num_speculative_tokens_per_batch_size={schedule!r}: {error}") from None
    given = check_num_speculative_tokens(settings.get("num_speculative_tokens", largest))
    if largest > given:
        raise ValueError(
            f"num_speculative_tokens_per_batch_size drafts up to {largest} tokens, more than "
            f"num_speculative_tokens={given}"
        )
    return given


def _merged_settings(engine_args: EngineArgs) -> dict:
    """Merge `speculative_config` with the three short flags; each setting may be given once."""
    settings = {
        key.replace("-", "_"): value
        for key, value in (engine_args.speculative_config or {}).items()
    }
    for flag, key, value in (
        ("--speculative-model (--spec-model)", "model", engine_args.spec_model),
        (
            "--num-speculative-tokens (--spec-tokens)",
            "num_speculative_tokens",
            engine_args.spec_tokens,
        ),
        ("--spec-method", "method", engine_args.spec_method),
    ):
        if value is None:
            continue
        if key in settings:
            raise ValueError(
                f"{flag} {value} contradicts --speculative-config, which sets "
                f"{key}={settings[key]!r} too; give it once"
            )
        settings[key] = value
    unsupported = sorted(set(settings) - set(SPECULATIVE_KEYS))
    if unsupported:
        raise ValueError(
            f"speculative model {settings['model']!r} does not take "
            f"{', '.join(f'{key}={settings[key]!r}' for key in unsupported)}; "
            f"it takes: {', '.join(SPECULATIVE_KEYS)}"
        )
    return settings


def layerskip_options(engine_args: EngineArgs) -> Mapping[str, object] | None:
    """Return the unchecked value of our key in `additional_config`; None if there is none."""
    additional = engine_args.additional_config
    return additional.get(OPTIONS_KEY) if isinstance(additional, Mapping) else None


def num_layers_of(model_config: ModelConfig, feature: str) -> int:
    """Return L of a model of a supported architecture.

    Raises:
        ValueError: The architecture is unsupported; the message lists the supported ones.
    """
    if model_config.architecture not in SUPPORTED_ARCHITECTURES:
        raise ValueError(
            f"{feature} does not support the architecture {model_config.architecture}; "
            f"supported: {', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    return model_config.get_total_num_hidden_layers()


def _worker_class() -> str:
    if current_platform.device_type not in WORKER_CLASSES:
        raise ValueError(
            f"self-speculation does not support the platform {current_platform.device_type}; "
            f"supported: {', '.join(WORKER_CLASSES)}"
        )
    return WORKER_CLASSES[current_platform.device_type]
