"""Early-exit inference (LayerSkip, section 4.2): the first N layers are the model.

vLLM gets a configuration of N layers and a model class that skips the other layers' weights. It
then serves a model of that depth as usual, with its own worker and runner.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vllm.config import ModelConfig
from vllm.logger import init_logger

from layerskip_vllm.config import EARLY_EXIT, OPTIONS_KEY, check_early_exit, check_option_names
from layerskip_vllm.models import early_exit_architecture
from layerskip_vllm.vllm_config.self_speculation import layerskip_options, num_layers_of
from layerskip_vllm.vllm_config.unsupported import (
    UNQUANTIZED_KV_CACHES,
    Unsupported,
    refuse_unsupported,
)

if TYPE_CHECKING:
    from vllm.engine.arg_utils import EngineArgs

logger = init_logger(f"vllm.{__name__}")

FEATURE = f"early exit ({EARLY_EXIT}=N)"

SAVED_STATES = ("sharded_state", "runai_streamer_sharded", "tensorizer", "ipc_cache")
"""Load formats that restore a whole model's state and bypass our choice of weights."""

UNSUPPORTED: Unsupported = (
    ("LoRA", lambda args: bool(args.enable_lora)),
    # An external KV store uses the same name for the full model.
    ("KV transfer", lambda args: args.kv_transfer_config is not None),
    ("KV offloading", lambda args: args.kv_offloading_size is not None),
    # By then vLLM has chosen the layers that stay unquantized, partly by counting from the last.
    ("a quantized KV cache", lambda args: args.kv_cache_dtype not in UNQUANTIZED_KV_CACHES),
    ("a load format that restores saved states", lambda args: args.load_format in SAVED_STATES),
)
"""Untested features that could give a wrong answer silently."""


def cut_model(engine_args: EngineArgs, model_config: ModelConfig) -> None:
    """Cut a model to its first N layers if the options set `early_exit`; otherwise do nothing.

    vLLM calls this through `EngineArgs.create_speculative_config` for engines without `self:E`:
    after it makes the model's configuration, before anything depends on the depth. It runs in the
    process that the user started, so errors show before any engine process starts.

    Raises:
        ValueError: N is out of range, an option needs `self:E`, or a feature is unsupported.
    """
    options = layerskip_options(engine_args)
    if options is None:
        return
    _refuse_unused_options(options)
    num_layers = num_layers_of(model_config, feature=FEATURE)
    early_exit = check_early_exit(options[EARLY_EXIT], num_layers)
    refuse_unsupported(engine_args, model_config, UNSUPPORTED, feature=FEATURE)
    num_stages = engine_args.pipeline_parallel_size
    if early_exit < num_stages:
        raise ValueError(
            f"{EARLY_EXIT}={early_exit} must be at least pipeline_parallel_size={num_stages}: "
            "each stage runs at least one layer"
        )
    _set_num_layers(model_config, early_exit)
    logger.info(
        "LayerSkip: layers [0, %d) of %d serve, without verification; architecture %s",
        early_exit,
        num_layers,
        model_config.architecture,
    )


def _refuse_unused_options(options: Mapping[str, object]) -> None:
    check_option_names(options)
    unused = {key: value for key, value in options.items() if key != EARLY_EXIT}
    if unused or not options:
        raise ValueError(
            f"additional_config[{OPTIONS_KEY!r}]={unused!r} has no effect without "
            "self-speculation: add --speculative-model self:E, or leave it out"
        )


def _set_num_layers(model_config: ModelConfig, num_layers: int) -> None:
    """Change the checkpoint's configuration and the fields that `ModelConfig` derived from it."""
    hf_config = model_config.hf_config
    hf_config.num_hidden_layers = num_layers
    if getattr(hf_config, "layer_types", None) is not None:
        hf_config.layer_types = hf_config.layer_types[:num_layers]
    hf_config.architectures = [early_exit_architecture(model_config.architecture)]
    model_config.model_arch_config = model_config.get_model_arch_config()
    model_config._model_info, model_config._architecture = model_config.registry.inspect_model_cls(
        model_config.architectures, model_config
    )
