"""Refuses vLLM features that were not tested: an error at start instead of a wrong answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from vllm import envs
from vllm.config.quantization import resolve_quantization_config
from vllm.v1.sample.logits_processor import LOGITSPROCS_GROUP

from layerskip_vllm.config import OPTIONS_KEY, LayerSkipConfig
from layerskip_vllm.vllm_config.runner import RUNNER_V1_ONLY, uses_runner_v2

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.engine.arg_utils import EngineArgs

UNQUANTIZED_KV_CACHES = ("auto", "float16", "bfloat16")

FP8_KV_CACHES = ("fp8", "fp8_e4m3", "fp8_e5m2")
"""Fixed scales quantize each value alone, so draft and target write the same KV."""

QUANTIZATIONS = (
    *("compressed-tensors", "auto_gptq", "auto_awq", "awq"),
    *("inc", "quark", "modelopt", "fp8_per_channel", "torchao"),
)
"""vLLM's names of the tested formats: `awq` is AWQ on a CPU, `inc` is AutoRound, `fp8_per_channel`
and `torchao` quantize a plain checkpoint at load."""


Unsupported = tuple[tuple[str, Callable[["EngineArgs"], object]], ...]
"""(name, predicate of the engine arguments) pairs. A predicate may return the value at fault as
text, which the error then shows."""


def _unsupported_kv_cache(args: EngineArgs) -> str:
    supported = (*UNQUANTIZED_KV_CACHES, *FP8_KV_CACHES)
    if args.kv_cache_dtype not in supported:
        return f"kv_cache_dtype={args.kv_cache_dtype!r}; supported: {', '.join(supported)}"
    skipped = args.kv_cache_dtype_skip_layers
    return f"kv_cache_dtype_skip_layers={skipped!r}" if skipped else ""


def _custom_logits_processors(args: EngineArgs) -> str:
    """VLLM refuses named ones late and silently ignores installed ones."""
    named = [f"logits_processors={args.logits_processors!r}"] if args.logits_processors else []
    installed = [
        f"{point.name}={point.value}, which a package has installed"
        for point in entry_points(group=LOGITSPROCS_GROUP)
    ]
    return "; ".join(named + installed)


def _structured_outputs_backend(args: EngineArgs) -> str | None:
    config = args.structured_outputs_config  # from Python it may be a dictionary still
    return config.get("backend") if isinstance(config, Mapping) else config.backend


SCHEDULER_CLASS = "layerskip_vllm.scheduling.scheduler.make_scheduler"


def _own_scheduler(args: EngineArgs) -> str:
    """Ours chooses K; vLLM takes one class.

    A configuration may be made twice from the same arguments, as Ray does: the second finds ours.
    """
    is_theirs = args.scheduler_cls not in (None, SCHEDULER_CLASS)
    return f"scheduler_cls={args.scheduler_cls!r}" if is_theirs else ""


def _on_runner_v2(is_used: Callable[[EngineArgs], object]) -> Callable[[EngineArgs], bool]:
    """Where the choice of a runner is ours, what is used chooses V1 instead."""
    return lambda args: bool(is_used(args)) and uses_runner_v2(args)


SELF_SPECULATION_UNSUPPORTED: Unsupported = (
    ("pipeline parallelism", lambda args: args.pipeline_parallel_size > 1),
    ("decode context parallelism", lambda args: args.decode_context_parallel_size > 1),
    ("prefill context parallelism", lambda args: args.prefill_context_parallel_size > 1),
    ("dual batch overlap", lambda args: args.enable_dbo),
    # In a batch with embedded prompts vLLM embeds tokens with the adapters of other rows, or fails.
    ("LoRA beside prompt embeddings", lambda args: args.enable_lora and args.enable_prompt_embeds),
    ("KV transfer", lambda args: args.kv_transfer_config is not None),
    ("KV offloading", lambda args: args.kv_offloading_size is not None),
    # Our workers' counts use the channel of its connector's.
    ("encoder cache transfer", lambda args: args.ec_transfer_config is not None),
    ("a KV cache that is neither unquantized nor fp8 in all layers", _unsupported_kv_cache),
    ("weight transfer", lambda args: args.weight_transfer_config is not None),
    # Waking would have to rebuild what sleep discards; untested, as vLLM refuses it on CPU.
    ("sleep mode", lambda args: args.enable_sleep_mode),
    ("custom logits processors", _custom_logits_processors),
    # vLLM refuses each such request, and the version that it pins does not import with vLLM 0.32.
    (
        "structured outputs by lm-format-enforcer",
        lambda args: _structured_outputs_backend(args) == "lm-format-enforcer",
    ),
    # Untested with drafts; vLLM's model runner V2 alone has them.
    ("watermarking", lambda args: args.watermark_config is not None),
    ("trace replay", lambda args: args.enable_trace_replay),
    ("sampling masks", lambda args: args.return_sampling_mask),
    ("batch-sharded sampling", lambda args: args.enable_batch_sharded_sampling),
    (
        "asynchronous scheduling on model runner V1 (V2 has it, on CUDA)",
        lambda args: args.async_scheduling is True and not uses_runner_v2(args),
    ),
    ("a scheduler class of your own", _own_scheduler),
    *(
        (
            f"{name} on model runner V2 (V1 supports it: VLLM_USE_V2_MODEL_RUNNER=0)",
            _on_runner_v2(is_used),
        )
        for name, is_used in RUNNER_V1_ONLY
    ),
    ("a worker class of your own", lambda args: args.worker_cls != "auto"),
    # It loads no plugins, so a request's options would reach the workers unchecked.
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
    """Refuse what the plugin never supports, and what a table lists for this feature.

    Raises:
        ValueError: Names everything that is unsupported.
    """
    found = []
    for name, is_used in unsupported:
        if used := is_used(engine_args):
            found.append(f"{name} ({used})" if isinstance(used, str) else name)
    if model_config.quantization not in (None, *quantizations):
        supported = f"; supported: {', '.join(quantizations)}" if quantizations else ""
        found.append(f"quantization ({model_config.quantization}{supported})")
    # vLLM itself sets it for some values of `--quantization`.
    if engine_args.quantization_config != resolve_quantization_config(
        engine_args.quantization, None
    ):
        found.append("--quantization-config, which quantizes layers differently")
    kv_cache_follows_checkpoint = engine_args.kv_cache_dtype in ("auto", *FP8_KV_CACHES)
    found += refused_quantization(
        model_config, kv_cache_follows_checkpoint=kv_cache_follows_checkpoint
    )
    if model_config.runner_type != "generate":
        found.append(f"the {model_config.runner_type} runner")
    if found:
        raise ValueError(
            f"{feature} does not support {', '.join(found)}; leave it out, or serve without "
            f"{feature}"
        )


def refused_quantization(
    model_config: ModelConfig, *, kv_cache_follows_checkpoint: bool
) -> list[str]:
    """Describe the unsupported parts of the checkpoint's quantization.

    Args:
        model_config: The target's.
        kv_cache_follows_checkpoint: Whether vLLM follows the checkpoint's quantization of the KV
            cache: if the engine arguments do not set it, or set fp8, for which it takes the
            checkpoint's scales.
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
    kv_cache_keys = (config.get("kv_cache_scheme"), config.get("kv_cache_quant_algo"))
    if kv_cache_follows_checkpoint and any((*kv_cache_keys, export.get("kv_cache_group"))):
        found.append("the checkpoint's quantized KV cache")
    if _torchao_scales_the_whole_batch(model_config) or any(
        _is_scaled_by_the_whole_batch(inputs) for inputs in _activations(config)
    ):
        found.append(
            "activations that are scaled by the whole batch: a token's result would depend on the "
            "drafts in its batch"
        )
    return found


def _activations(config: Mapping) -> list[Mapping]:
    """Return how each group of layers quantizes its inputs, for compressed-tensors and Quark."""
    groups = (config.get("config_groups") or {}).values()
    layers = (config.get("layer_quant_config") or {}).values()
    found = [group.get("input_activations") for group in groups]
    found += [layer.get("input_tensors") for layer in layers]
    found.append((config.get("global_quant_config") or {}).get("input_tensors"))
    return [inputs for inputs in found if isinstance(inputs, Mapping)]


def _is_scaled_by_the_whole_batch(inputs: Mapping) -> bool:
    if not (inputs.get("dynamic") or inputs.get("is_dynamic")):
        return False
    return "tensor" in (inputs.get("strategy"), str(inputs.get("qscheme")).removeprefix("per_"))


def _torchao_scales_the_whole_batch(model_config: ModelConfig) -> bool:
    """Read torchao's settings from `hf_overrides`, which holds JSON or names a file of it."""
    if model_config.quantization != "torchao":
        return False
    overrides = model_config.hf_overrides
    if not isinstance(overrides, Mapping):
        return False  # vLLM refuses it
    settings = overrides.get("quantization_config_dict_json", "")
    if file := overrides.get("quantization_config_file"):
        settings = Path(file).read_text(encoding="utf-8")
    return "DynamicActivation" in settings and "PerTensor" in settings


def refuse_partial_heads(
    settings: Mapping[str, object], layerskip: LayerSkipConfig, feature: str
) -> None:
    """Refuse LoRA with options that bypass an adapter of the LM head in drafts.

    Raises:
        ValueError: Names the options at fault.
    """
    values = {
        "use_local_argmax_reduction": settings.get("use_local_argmax_reduction"),
        f"{OPTIONS_KEY}.draft_vocab_size": layerskip.draft_vocab_size,
    }
    partial = [f"{name}={value!r}" for name, value in values.items() if value]
    if partial:
        raise ValueError(
            f"{feature} does not support LoRA with {', '.join(partial)}: an adapter may change the "
            "LM head for the whole vocabulary; leave out one of them"
        )


def share_kv_cache_group(engine_args: EngineArgs, model_config: ModelConfig, feature: str) -> None:
    """Put layers with and without a sliding window into one KV cache group.

    Drafts compute one slot per position, so all layers need the same blocks. This costs memory:
    layers with a window keep blocks outside it.

    Raises:
        ValueError: The user asked for separate groups.
    """
    layer_types = set(getattr(model_config.hf_text_config, "layer_types", None) or ())
    if len(layer_types) <= 1:
        return
    if engine_args.disable_hybrid_kv_cache_manager is False:
        raise ValueError(
            f"{feature} keeps the KV cache of all layers in one group, even if their attention "
            f"differs ({', '.join(sorted(layer_types))}): leave out "
            "--no-disable-hybrid-kv-cache-manager"
        )
    engine_args.disable_hybrid_kv_cache_manager = True
