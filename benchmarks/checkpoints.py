"""Checkpoints in the cache: built once, whole or not at all; and the first E layers of one."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from layerskip_vllm.demo.smollm2 import cache_dir

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

DIGEST_CHARS = 10


def cached(name: str, recipe: str, build: Callable[[Path], None]) -> Path:
    """Return the cache's directory for a recipe, built first where it is not there.

    Args:
        name: Start of the directory's name.
        recipe: All that decides what is built; another recipe has another directory.
        build: Fills the directory that it is given.
    """
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:DIGEST_CHARS]
    directory = cache_dir() / "benchmarks" / f"{name}-{digest}"
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
            unfinished = Path(temporary) / directory.name
            unfinished.mkdir()
            build(unfinished)
            # A rename is atomic: an interrupted build leaves no half directory behind.
            unfinished.rename(directory)
    return directory


def save_cut(model: LlamaForCausalLM, num_layers: int, directory: Path) -> None:
    """Save a model without the layers from `num_layers` on, which it loses."""
    model.model.layers = model.model.layers[:num_layers]
    model.config.num_hidden_layers = num_layers
    model.save_pretrained(directory)


def cut(checkpoint: Path, num_layers: int) -> Path:
    """Return a checkpoint's first layers with its embedding, final norm and LM head."""
    from transformers import AutoModelForCausalLM

    def build(directory: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
        save_cut(model, num_layers, directory / "model")

    recipe = f"{fingerprint(checkpoint)} {num_layers}"
    return cached(f"{checkpoint.name}-cut", recipe, build) / "model"


def fingerprint(checkpoint: Path) -> str:
    """What changes when a checkpoint does: its configuration, and size and time of its weights."""
    files = sorted(checkpoint.glob("*.safetensors"))
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return f"{(checkpoint / 'config.json').read_text()} {stats}"


def num_parameters(checkpoint: Path) -> int:
    """Elements of all weights; what is tied counts once."""
    from safetensors import safe_open

    total = 0
    for file in checkpoint.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - it is no mapping
                total += math.prod(weights.get_slice(name).get_shape())
    return total
