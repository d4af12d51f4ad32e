"""What self-speculation makes of quantized checkpoints, LoRA and layers of several types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from layerskip_vllm.config import OPTIONS_KEY, LayerSkipConfig

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.engine.arg_utils import EngineArgs

QUANTIZATIONS = (
    *("compressed-tensors", "auto_gptq", "auto_awq", "awq"),
    *("inc", "quark", "modelopt", "fp8_per_channel"),
)
"""vLLM's names of the formats that were tested; `awq` is AWQ's on a CPU, `inc` is AutoRound's, and
`fp8_per_channel` rounds a plain checkpoint as it is loaded."""


def refused_quantization(model_config: ModelConfig, *, heeds_kv_cache: bool) -> list[str]:
    """What of the checkpoint's quantization is not supported, in words.

    Args:
        model_config: The target's.
        heeds_kv_cache: Whether vLLM would follow what the checkpoint says of the KV cache: where
            the engine arguments say nothing of it, and where they say fp8, whose scales it takes.
    """
    config = model_config.model_arch_config.quantization_config or {}
    inner = config.get("quantization")  # ModelOpt's older files; vLLM reads both places
    if isinstance(inner, Mapping):
        config = {**config, **inner}
    found = []
    export = config.get("export") or {}  # Quark's
    of_kv_cache = (config.get("kv_cache_scheme"), config.get("kv_cache_quant_algo"))
    if heeds_kv_cache and any((*of_kv_cache, export.get("kv_cache_group"))):
        found.append("the checkpoint's quantized KV cache")
    if any(_is_of_the_whole_batch(inputs) for inputs in _activations(config)):
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
