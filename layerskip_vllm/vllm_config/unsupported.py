"""What of vLLM is supported. What has not been tested is refused: an error, no wrong answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from vllm import envs
from vllm.config.quantization import resolve_quantization_config
from vllm.v1.sample.logits_processor import LOGITSPROCS_GROUP

from layerskip_vllm.config import OPTIONS_KEY, LayerSkipConfig

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.engine.arg_utils import EngineArgs

UNQUANTIZED_KV_CACHES = ("auto", "float16", "bfloat16")

FP8_KV_CACHES = ("fp8", "fp8_e4m3", "fp8_e5m2")
"""Quantized value by value, by scales that never change: KV is the same whoever writes it."""

QUANTIZATIONS = (
    *("compressed-tensors", "auto_gptq", "auto_awq", "awq"),
    *("inc", "quark", "modelopt", "fp8_per_channel", "torchao"),
)
"""vLLM's names of the formats that were tested; `awq` is AWQ's on a CPU, `inc` is AutoRound's, and
`fp8_per_channel` and `torchao` round a plain checkpoint as it is loaded."""


Unsupported = tuple[tuple[str, Callable[["EngineArgs"], object]], ...]
"""What a feature does not support: its name, and whether the engine arguments ask for it, or the
words by which they do."""


def _strange_kv_cache(args: EngineArgs) -> str:
    supported = (*UNQUANTIZED_KV_CACHES, *FP8_KV_CACHES)
    if args.kv_cache_dtype not in supported:
        return f"kv_cache_dtype={args.kv_cache_dtype!r}; supported: {', '.join(supported)}"
    skipped = args.kv_cache_dtype_skip_layers
    return f"kv_cache_dtype_skip_layers={skipped!r}" if skipped else ""


def _custom_logits_processors(args: EngineArgs) -> str:
    """VLLM refuses those that are named, late, and silently leaves out those that are installed."""
    named = [f"logits_processors={args.logits_processors!r}"] if args.logits_processors else []
    installed = [
        f"{point.name}={point.value}, which a package has installed"
        for point in entry_points(group=LOGITSPROCS_GROUP)
    ]
    return "; ".join(named + installed)


SELF_SPECULATION_UNSUPPORTED: Unsupported = (
    ("pipeline parallelism", lambda args: args.pipeline_parallel_size > 1),
    ("decode context parallelism", lambda args: args.decode_context_parallel_size > 1),
    ("prefill context parallelism", lambda args: args.prefill_context_parallel_size > 1),
    ("dual batch overlap", lambda args: args.enable_dbo),
    # vLLM embeds the tokens beside embedded prompts with the adapters of other rows, or fails.
    ("LoRA beside prompt embeddings", lambda args: args.enable_lora and args.enable_prompt_embeds),
    ("KV transfer", lambda args: args.kv_transfer_config is not None),
    ("KV offloading", lambda args: args.kv_offloading_size is not None),
    # Our workers' numbers travel where its connector's would.
    ("encoder cache transfer", lambda args: args.ec_transfer_config is not None),
    ("a KV cache that is neither unquantized nor fp8 in all layers", _strange_kv_cache),
    ("weight transfer", lambda args: args.weight_transfer_config is not None),
    # What it discards would have to be made again; not on CPU, where vLLM refuses it.
    ("sleep mode", lambda args: args.enable_sleep_mode),
    ("custom logits processors", _custom_logits_processors),
    ("asynchronous scheduling", lambda args: args.async_scheduling is True),
    ("a scheduler class of your own", lambda args: args.scheduler_cls is not None),
    ("a worker class of your own", lambda args: args.worker_cls != "auto"),
    ("model runner V2", lambda args: envs.VLLM_USE_V2_MODEL_RUNNER is True),
    # It loads no plugins: a request's values would reach the workers unchecked.
    ("the Rust front end (VLLM_USE_RUST_FRONTEND)", lambda args: envs.VLLM_USE_RUST_FRONTEND),
)


def refuse_unsupported(
    engine_args: EngineArgs,
    model_config: ModelConfig,
    unsupported: Unsupported,
    quantizations: Sequence[str] = (),
    *,
    feature: str,
) -> None:
    """Refuse what no feature of ours supports, and what a table says this one does not.

    Raises:
        ValueError: It names all that was asked for in vain.
    """
    found = []
    for name, asked_for in unsupported:
        if words := asked_for(engine_args):
            found.append(f"{name} ({words})" if isinstance(words, str) else name)
    if model_config.quantization not in (None, *quantizations):
        supported = f"; supported: {', '.join(quantizations)}" if quantizations else ""
        found.append(f"quantization ({model_config.quantization}{supported})")
    # vLLM itself fills it in for some names of `--quantization`.
    if engine_args.quantization_config != resolve_quantization_config(
        engine_args.quantization, None
    ):
        found.append("--quantization-config, which quantizes some layers otherwise")
    heeds_kv_cache = engine_args.kv_cache_dtype in ("auto", *FP8_KV_CACHES)
    found += refused_quantization(model_config, heeds_kv_cache=heeds_kv_cache)
    if model_config.runner_type != "generate":
        found.append(f"the {model_config.runner_type} runner")
    if found:
        raise ValueError(
            f"{feature} does not support {', '.join(found)}; leave it out, or serve without "
            f"{feature}"
        )


def refused_quantization(model_config: ModelConfig, *, heeds_kv_cache: bool) -> list[str]:
    """What of the checkpoint's quantization is not supported, in words.

    Args:
        model_config: The target's.
        heeds_kv_cache: Whether vLLM would follow what the checkpoint says of the KV cache: where
            the engine arguments say nothing of it, and where they say fp8, whose scales it takes.
    """
    config = model_config.model_arch_config.quantization_config or {}
    if config.get("quant_method") == "torchao":
        return [
            "checkpoints that torchao has written; round a plain one with --quantization torchao"
        ]
    inner = config.get("quantization")  # ModelOpt's older files; vLLM reads both places
    if isinstance(inner, Mapping):
        config = {**config, **inner}
    found = []
    export = config.get("export") or {}  # Quark's
    of_kv_cache = (config.get("kv_cache_scheme"), config.get("kv_cache_quant_algo"))
    if heeds_kv_cache and any((*of_kv_cache, export.get("kv_cache_group"))):
        found.append("the checkpoint's quantized KV cache")
    if _torchao_scales_the_whole_batch(model_config) or any(
        _is_of_the_whole_batch(inputs) for inputs in _activations(config)
    ):
        found.append(
            "activations that are scaled by the whole batch: a token's result would depend on the "
            "drafts beside it"
        )
    return found


def _activations(config: Mapping) -> list[Mapping]:
    """How each group of layers quantizes its inputs, in compressed-tensors and in Quark."""
    groups = (config.get("config_groups") or {}).values()
    layers = (config.get("layer_quant_config") or {}).values()
    found = [group.get("input_activations") for group in groups]
    found += [layer.get("input_tensors") for layer in layers]
    found.append((config.get("global_quant_config") or {}).get("input_tensors"))
    return [inputs for inputs in found if isinstance(inputs, Mapping)]


def _is_of_the_whole_batch(inputs: Mapping) -> bool:
    if not (inputs.get("dynamic") or inputs.get("is_dynamic")):
        return False
    return "tensor" in (inputs.get("strategy"), str(inputs.get("qscheme")).removeprefix("per_"))


def _torchao_scales_the_whole_batch(model_config: ModelConfig) -> bool:
    """What torchao is told comes as `hf_overrides`: JSON, or a file that holds it."""
    if model_config.quantization != "torchao":
        return False
    overrides = model_config.hf_overrides
    if not isinstance(overrides, Mapping):
        return False  # vLLM refuses it
    told = overrides.get("quantization_config_dict_json", "")
    if file := overrides.get("quantization_config_file"):
        told = Path(file).read_text(encoding="utf-8")
    return "DynamicActivation" in told and "PerTensor" in told


def refuse_partial_heads(
    settings: Mapping[str, object], layerskip: LayerSkipConfig, feature: str
) -> None:
    """Refuse, beside LoRA, what computes the drafts' logits past an adapter of the LM head.

    Raises:
        ValueError: It names the options at fault.
    """
    asked_for = {
        "use_local_argmax_reduction": settings.get("use_local_argmax_reduction"),
        f"{OPTIONS_KEY}.draft_vocab_size": layerskip.draft_vocab_size,
    }
    partial = [f"{name}={value!r}" for name, value in asked_for.items() if value]
    if partial:
        raise ValueError(
            f"{feature} does not support LoRA with {', '.join(partial)}: an adapter may change the "
            "LM head for the whole vocabulary; leave out one of them"
        )


def share_kv_cache_group(engine_args: EngineArgs, model_config: ModelConfig, feature: str) -> None:
    """Give layers with and without a sliding window the same blocks: drafts are laid out once.

    It costs memory: a block outside of the window is kept for the layers that have none.

    Raises:
        ValueError: The user asked for a group of layers each.
    """
    layer_types = set(getattr(model_config.hf_text_config, "layer_types", None) or ())
    if len(layer_types) <= 1:
        return
    if engine_args.disable_hybrid_kv_cache_manager is False:
        raise ValueError(
            f"{feature} keeps the KV cache of all layers in one group, also where their attention "
            f"differs ({', '.join(sorted(layer_types))}): leave out "
            "--no-disable-hybrid-kv-cache-manager"
        )
    engine_args.disable_hybrid_kv_cache_manager = True
