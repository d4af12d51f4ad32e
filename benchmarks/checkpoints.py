"""Cached checkpoints, built once and atomically, and checkpoints of the first E layers."""

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
    """Return the cache directory of a recipe; build it if it is missing.

    Args:
        name: Start of the directory's name.
        recipe: Everything that determines the result; each recipe has its own directory.
        build: Fills the directory it gets.
    """
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:DIGEST_CHARS]
    directory = cache_dir() / "benchmarks" / f"{name}-{digest}"
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as temporary:
            unfinished = Path(temporary) / directory.name
            unfinished.mkdir()
            build(unfinished)
            # A rename is atomic: an interrupted build leaves no partial directory.
            unfinished.rename(directory)
    return directory


def save_cut(model: LlamaForCausalLM, num_layers: int, directory: Path) -> None:
    """Drop a model's layers from `num_layers` on, in place, and save it."""
    model.model.layers = model.model.layers[:num_layers]
    model.config.num_hidden_layers = num_layers
    model.save_pretrained(directory)


def cut(checkpoint: Path, num_layers: int) -> Path:
    """Return a checkpoint of the first layers, with embedding, final norm and LM head."""
    from transformers import AutoModelForCausalLM

    def build(directory: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
        save_cut(model, num_layers, directory / "model")

    recipe = f"{fingerprint(checkpoint)} {num_layers}"
    return cached(f"{checkpoint.name}-cut", recipe, build) / "model"


def fingerprint(checkpoint: Path) -> str:
    """Identify a checkpoint's content by its configuration and the size and time of its weights."""
    files = sorted(checkpoint.glob("*.safetensors"))
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return f"{(checkpoint / 'config.json').read_text()} {stats}"


def num_parameters(checkpoint: Path) -> int:
    """Number of elements in all weights; tied ones count once."""
    from safetensors import safe_open

    total = 0
    for file in checkpoint.glob("*.safetensors"):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a mapping
                total += math.prod(weights.get_slice(name).get_shape())
    return total
