"""Quantized checkpoints, rounded from a plain one without calibration data or a GPU.

vLLM's sources in `vllm/model_executor/layers/quantization/` define the formats:
`compressed_tensors/`, `auto_gptq.py`, `auto_awq.py`, `quark/`, `inc/` (AutoRound), `modelopt.py`.
The library `compressed-tensors`, on which vLLM depends, writes its format.
"""

import json
import shutil
from pathlib import Path

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import quantize as round_to_grid
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file

GROUP_SIZE = 32
INPUT_SCALE = 0.05
"""Scale of static activations: 127 steps cover these models' activations except outliers."""

AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
"""The column, of eight neighbours, in each four bits of an int32, lowest bits first."""

Tensors = dict[str, torch.Tensor]

INT8, INT4 = {"num_bits": 8, "strategy": "channel"}, {"num_bits": 4, "strategy": "channel"}
GROUPS = {"num_bits": 4, "strategy": "group", "group_size": GROUP_SIZE}
TOKENS = {"num_bits": 8, "strategy": "token", "dynamic": True}
FLOAT, ASYMMETRIC = {"type": "float"}, {"symmetric": False}

COMPRESSED_TENSORS = {
    # Name: (format, weights, input activations).
    "w4a16": ("pack-quantized", GROUPS, None),
    "w4a16-asymmetric": ("pack-quantized", GROUPS | ASYMMETRIC, None),
    "w8a8": ("int-quantized", INT8, TOKENS),
    "w8a8-asymmetric": ("int-quantized", INT8, TOKENS | ASYMMETRIC),
    "w8a8-static": ("int-quantized", INT8, {"num_bits": 8, "strategy": "tensor"}),
    "w8a8-fp8": ("float-quantized", INT8 | FLOAT, TOKENS | FLOAT),
    "w4a8": ("int-quantized", INT4, TOKENS),
}


def quantized(model: str, directory: Path, name: str) -> str:
    """Write the checkpoint with its decoder layers' projections in the named format."""
    path = directory / f"{Path(model).name}-{name}"
    shutil.copytree(model, path, ignore=shutil.ignore_patterns("*.safetensors", "*.png"))
    tensors: Tensors = {}
    for key, tensor in load_file(Path(model) / "model.safetensors").items():
        if key.endswith("_proj.weight"):
            module = key.removesuffix(".weight")
            of_module = WRITERS[name](tensor.float())
            tensors |= {f"{module}.{part}": value for part, value in of_module.items()}
        else:
            tensors[key] = tensor
    save_file({k: v.contiguous() for k, v in tensors.items()}, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = CONFIGS[name]
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def scale_and_zero_point(
    weight: torch.Tensor,  # [output_size, input_size], float32
    args: QuantizationArgs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point of each group of columns, or of each row: [output_size, num_groups]."""
    groups = weight.unflatten(1, (-1, args.group_size or weight.shape[1]))
    return calculate_qparams(groups.amin(dim=-1), groups.amax(dim=-1), args)


def compressed(format_name: str, weights: dict, inputs: dict | None):
    """A writer of a compressed-tensors scheme."""
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(**weights),
        input_activations=QuantizationArgs(**inputs) if inputs else None,
    )
    compressor = BaseCompressor.get_value_from_registry(format_name)

    def write(weight: torch.Tensor) -> Tensors:
        scale, zero_point = scale_and_zero_point(weight, scheme.weights)
        plain = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero_point}
        tensors = compressor.compress(plain, scheme)
        if inputs and not inputs.get("dynamic"):
            tensors["input_scale"] = torch.tensor([INPUT_SCALE])
        return tensors

    return write


def gptq(weight: torch.Tensor) -> Tensors:
    """Symmetric, packed along the input dimension."""
    args = QuantizationArgs(**GROUPS)
    scale, zero_point = scale_and_zero_point(weight, args)
    rounded = round_to_grid(weight, scale, zero_point, args, dtype=torch.int8)
    # The format stores zero points minus one: 8 - 1, in all eight places of an int32.
    zeros = torch.full(scale.T.shape, 7 - 8, dtype=torch.int8)
    return {
        "qweight": pack_to_int32(rounded.T, 4, packed_dim=0),
        "qzeros": pack_to_int32(zeros, 4),
        "scales": scale.T,
        "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP_SIZE,
    }


def awq(weight: torch.Tensor) -> Tensors:
    """Asymmetric, packed along the output dimension in AWQ_ORDER."""
    args = QuantizationArgs(**(GROUPS | ASYMMETRIC))
    scale, zero_point = scale_and_zero_point(weight, args)
    rounded = round_to_grid(weight, scale, zero_point, args, dtype=torch.int8)

    def packed(values: torch.Tensor) -> torch.Tensor:  # [*, output_size], int8
        in_order = values.unflatten(1, (-1, 8))[..., AWQ_ORDER].flatten(1)
        return pack_to_int32(in_order.contiguous(), 4)

    return {
        "qweight": packed(rounded.T),
        "qzeros": packed(zero_point.to(torch.int8).T),
        "scales": scale.T,
    }


def quark_int4(weight: torch.Tensor) -> Tensors:
    """AWQ's tensors under other names; "reorder" in `CONFIGS` means the same order."""
    tensors = awq(weight)
    return {
        "weight": tensors["qweight"],
        "weight_zero_point": tensors["qzeros"],
        "weight_scale": tensors["scales"],
    }


def fp8_with_a_flat_scale(weight: torch.Tensor) -> Tensors:
    tensors = compressed(*COMPRESSED_TENSORS["w8a8-fp8"])(weight)
    return tensors | {"weight_scale": tensors["weight_scale"].flatten()}


def _quark(weights: dict, inputs: dict | None = None) -> dict:
    return {
        "quant_method": "quark",
        "export": {"kv_cache_group": [], "pack_method": "reorder"},
        "global_quant_config": {
            "weight": {"is_dynamic": False, "symmetric": True, "ch_axis": 0} | weights,
            "input_tensors": inputs,
            "output_tensors": None,
        },
        "layer_quant_config": {},
        "layer_type_quant_config": {},
        "exclude": ["lm_head"],
    }


def _config(format_name: str, weights: dict, inputs: dict | None) -> dict:
    defaults = {"type": "int", "symmetric": True, "dynamic": False}
    group = {
        "targets": ["Linear"],
        "weights": defaults | weights,
        "input_activations": defaults | inputs if inputs else None,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": format_name,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


WRITERS = {name: compressed(*scheme) for name, scheme in COMPRESSED_TENSORS.items()} | {
    "gptq": gptq,
    "awq": awq,
    # Same tensors as GPTQ.
    "auto-round": gptq,
    "quark-w8a8": compressed(*COMPRESSED_TENSORS["w8a8"]),
    "quark-w8a8-fp8": fp8_with_a_flat_scale,
    "quark-w4a16": quark_int4,
    "modelopt-fp8": fp8_with_a_flat_scale,
}
PER_TOKEN = {"qscheme": "per_channel", "is_dynamic": True, "symmetric": True}
CONFIGS = {name: _config(*scheme) for name, scheme in COMPRESSED_TENSORS.items()} | {
    "gptq": {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": GROUP_SIZE,
        "sym": True,
        "desc_act": False,
    },
    "awq": {
        "quant_method": "awq",
        "bits": 4,
        "group_size": GROUP_SIZE,
        "zero_point": True,
        "version": "gemm",
    },
    "auto-round": {
        "quant_method": "auto-round",
        "packing_format": "auto_round:auto_gptq",
        "bits": 4,
        "group_size": GROUP_SIZE,
        "sym": True,
    },
    "quark-w8a8": _quark(
        {"dtype": "int8", "qscheme": "per_channel"}, PER_TOKEN | {"dtype": "int8"}
    ),
    "quark-w8a8-fp8": _quark(
        {"dtype": "fp8_e4m3", "qscheme": "per_channel"}, PER_TOKEN | {"dtype": "fp8_e4m3"}
    ),
    "quark-w4a16": _quark(
        {
            "dtype": "uint4",
            "qscheme": "per_group",
            "group_size": GROUP_SIZE,
            "symmetric": False,
        }
    ),
    "modelopt-fp8": {
        "quant_method": "modelopt",
        "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN",
        "ignore": ["lm_head"],
    },
}
