"""The models of the `self:auto` comparison, and their texts."""

from __future__ import annotations

import json
import logging
import multiprocessing
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.exit_profiles import PROFILED_1B, PROFILED_SMALL, ProfiledModel
from benchmarks.models import DTYPE_BYTES
from layerskip_vllm.checkpoint.settings import read_settings
from layerskip_vllm.demo.models import MODELS as DEMO_MODELS
from layerskip_vllm.demo.models import DemoModel
from layerskip_vllm.vllm_config.exit_candidates import of_depth

KV_CACHE_TOKENS = 12_288
"""Enough for three blocks of 128 tokens for each of 32 requests."""

NUM_PROMPTS = 180

MAX_PROMPT_TOKENS = 64


@dataclass(frozen=True)
class Texts:
    """Prompts of one kind.

    Attributes:
        prompts: Token ids.
        pays: Whether fixed pairs are measured too; else only plain vLLM is the rival.
    """

    prompts: list[list[int]]
    pays: bool = True


@dataclass(frozen=True)
class Subject:
    """A checkpoint and its texts.

    Attributes:
        name: On the command line and in tables.
        path: The checkpoint.
        exit_layers: The exits among which `self:auto` chooses, each of which also drafts alone.
        texts: Set -> its prompts.
        dtype: Of the engines.
        kv_cache_bytes: Budget of each engine's KV cache.
    """

    name: str
    path: Path
    exit_layers: tuple[int, ...]
    texts: Mapping[str, Texts]
    dtype: str
    kv_cache_bytes: int

    @classmethod
    def of(
        cls, name: str, path: Path, texts: Mapping[str, Texts], dtype: str = "bfloat16"
    ) -> Subject:
        """Read the exits as `self:auto` does: from the checkpoint, or from its depth."""
        config = json.loads((path / "config.json").read_text())
        settings = read_settings(path)
        num_layers = config["num_hidden_layers"]
        exit_layers = settings.exit_layers if settings is not None else of_depth(num_layers)
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        elements = 2 * num_layers * config["num_key_value_heads"] * head_dim
        kv_cache_bytes = KV_CACHE_TOKENS * elements * DTYPE_BYTES[dtype]
        return cls(name, path, tuple(sorted(exit_layers)), texts, dtype, kv_cache_bytes)

    @property
    def paying(self) -> list[str]:
        """Sets on which fixed pairs are measured, in order."""
        return [name for name, texts in self.texts.items() if texts.pays]


def _profiled(model: ProfiledModel) -> Subject:
    texts = {
        text_set.name: Texts(model.prompts(index, NUM_PROMPTS), text_set.pays)
        for index, text_set in enumerate(model.text_sets)
    }
    return Subject.of(model.name, model.prepare(), texts, model.dtype)


def _with_text(name: str, demo: DemoModel, checkpoint: Path, pays: bool) -> Subject:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    texts = [prompt.text for prompt in demo.prompts()]
    prompts = [tokenizer(text)["input_ids"][:MAX_PROMPT_TOKENS] for text in texts]
    return Subject.of(name, checkpoint, {"text": Texts(prompts, pays)})


TRAINED, UNTRAINED = DEMO_MODELS["python-10m"], DEMO_MODELS["smollm2"]

SUBJECTS: dict[str, Callable[[], Subject]] = {
    "profiled-1b": lambda: _profiled(PROFILED_1B),
    "trained": lambda: _with_text("trained", TRAINED, TRAINED.prepare(), pays=True),
    "untrained": lambda: _with_text("untrained", UNTRAINED, UNTRAINED.prepare(), pays=False),
    "profiled-small": lambda: _profiled(PROFILED_SMALL),
}
"""Those that need no argument."""


FINE_TUNED = "fine-tuned"
"""SmolLM2 fine-tuned by `examples/finetune_smollm2.yaml`; its folder is an argument."""


def prepare(name: str, checkpoint: Path | None) -> Subject:
    """Prepare a subject in a process of its own, which frees its memory at the end.

    Args:
        name: One of SUBJECTS, or FINE_TUNED.
        checkpoint: Folder of the latter.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as executor:
        return executor.submit(_prepare, name, checkpoint).result()


def _prepare(name: str, checkpoint: Path | None) -> Subject:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if checkpoint is None:
        return SUBJECTS[name]()
    return _with_text(FINE_TUNED, UNTRAINED, checkpoint, pays=True)
