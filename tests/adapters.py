"""LoRA adapters with random weights, in PEFT's format."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

RANK, ALPHA = 4, 8
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
EMBEDDINGS = ("embed_tokens", "lm_head")


def save_adapter(
    model: str,
    directory: Path,
    seed: int,
    layers: Iterable[int],
    embeddings: tuple[str, ...] = EMBEDDINGS,
) -> str:
    """Write an adapter for all projections of `layers` and the given embeddings.

    It changes a weight of standard deviation 0.1 by about 0.04.
    """
    generator = torch.Generator().manual_seed(seed)
    of_layers = tuple(f"model.layers.{layer}." for layer in layers)
    tensors = {}
    with safe_open(Path(model) / "model.safetensors", "pt") as checkpoint:
        names = checkpoint.keys()
        for name in names:
            module = name.removesuffix(".weight")
            kind = module.rsplit(".", 1)[-1]
            if kind in embeddings or (kind in PROJECTIONS and name.startswith(of_layers)):
                shape = checkpoint.get_slice(name).get_shape()
                tensors |= factors(module, shape, generator)
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    targets = [*PROJECTIONS, *embeddings]
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": targets}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    return str(directory)


def factors(module: str, shape: list[int], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The two matrices whose product is added to a weight of this shape."""
    rows, columns = shape  # for an embedding: tokens, features
    looked_up = module.endswith("embed_tokens")
    first = torch.randn(RANK, rows if looked_up else columns, generator=generator)
    second = torch.randn(columns if looked_up else rows, RANK, generator=generator)
    names = (
        ("lora_embedding_A", "lora_embedding_B")
        if looked_up
        else ("lora_A.weight", "lora_B.weight")
    )
    matrices = (0.1 * first, 0.1 * second)
    return {
        f"base_model.model.{module}.{name}": matrix
        for name, matrix in zip(names, matrices, strict=True)
    }
