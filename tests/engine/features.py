"""Models and engine settings for the scenarios of test_scenarios.py."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vllm.lora.request import LoRARequest

from tests.adapters import EMBEDDINGS, save_adapter
from tests.models import RandomLlama, RandomModel
from tests.quantize import quantized

NUM_LAYERS, EXIT_LAYER = 6, 3
WINDOW = 48
LORA = {"enable_lora": True, "max_loras": 4}
"""One slot more than adapters: if all slots are taken, stock vLLM on a CPU applies the last adapter
to requests without one (patches/README.md)."""


@dataclass(frozen=True)
class Feature:
    """A special property of a model; its drafts are accepted about half of the time."""

    shape: dict
    """Of the random checkpoint; without a `family` it is a Llama."""
    quantization: str | None = None
    """A format of tests/quantize.py."""
    adapted_embeddings: tuple[str, ...] | None = None
    """Embeddings that the adapters change besides all projections; None: no adapters."""
    min_cached_tokens: int = 96
    """Least number of tokens of a shared 96-token prefix that a second run finds in the cache."""

    chunk_size: int = 16
    """Token budget of a step in the scenario with chunked prompts."""

    @property
    def settings(self) -> dict:
        """Arguments of plain and self-speculating engines."""
        return LORA if self.adapted_embeddings is not None else {}

    def prepare(self, directory: Path) -> Prepared:
        """Write the checkpoint and its adapters."""
        kind = RandomModel if "family" in self.shape else RandomLlama
        model = kind(num_layers=NUM_LAYERS, late_scale=0.3, **self.shape).save(directory)
        if self.quantization is not None:
            model = quantized(model, directory, self.quantization)
        if self.adapted_embeddings is None:
            return Prepared(model)
        a, b, c = (
            LoRARequest(
                name,
                n,
                save_adapter(model, directory / name, n, range(6), self.adapted_embeddings),
            )
            for n, name in enumerate("abc", start=1)
        )
        return Prepared(model, [a, None, b, c])


@dataclass(frozen=True)
class Prepared:
    """A feature's checkpoint on disk, and the adapters that its requests use in turn."""

    model: str
    adapters: list[LoRARequest | None] = field(default_factory=lambda: [None])

    def adapters_of(self, num_requests: int) -> list[LoRARequest | None]:
        return [self.adapters[i % len(self.adapters)] for i in range(num_requests)]


IN_ALL_SCENARIOS = {
    "llama": Feature({}),
    "window": Feature({"family": "mistral", "sliding_window": WINDOW}, min_cached_tokens=WINDOW),
    "adapters": Feature({}, adapted_embeddings=EMBEDDINGS, chunk_size=32),
    # Integer sums are exact, so a row's result is the same in every batch.
    "w8a8": Feature({}, quantization="w8a8"),
}

# The published Qwen models of these shapes have tied heads.
IN_ONE_SCENARIO = {
    "tied-head": Feature({"tied": True}),
    "multi-head-attention": Feature({"num_kv_heads": 4}),
    "multi-query-attention": Feature({"num_kv_heads": 1}),
    "mistral": Feature({"family": "mistral"}),
    "qwen2": Feature({"family": "qwen2", "tied": True}),
    "qwen2-window": Feature({"family": "qwen2", "tied": True, "sliding_window": WINDOW}),
    "qwen3": Feature({"family": "qwen3", "tied": True}),
    "qwen3-window": Feature({"family": "qwen3", "tied": True, "sliding_window": WINDOW}),
    # vLLM's Mistral and Qwen2 do not support adapters of embeddings.
    "mistral-adapters": Feature({"family": "mistral"}, adapted_embeddings=()),
    "qwen2-adapters": Feature({"family": "qwen2"}, adapted_embeddings=()),
    "qwen3-adapters": Feature({"family": "qwen3"}, adapted_embeddings=EMBEDDINGS),
    "w8a8-asymmetric": Feature({}, quantization="w8a8-asymmetric"),
    "w8a8-static": Feature({}, quantization="w8a8-static"),
    "w4a8": Feature({}, quantization="w4a8"),
}
