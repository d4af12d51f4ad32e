"""The systems that are compared: what each engine is started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.models import PreparedModel

SYSTEMS = (
    "plain",
    "self",
    "self-default",
    "self-recompute",
    "self-draft-vocab",
    "draft_model",
    "ngram",
    "transformers",
    "transformers-early-exit",
)
"""Every name in the table."""

FIXED: dict[str, object] = {"adaptive": False, "stop_drafting": False}
"""Options of `self:E` under which it drafts exactly K tokens, whatever that costs."""


MAX_NUM_SEQS = 128
"""Enough to measure a plain forward of so many rows."""


@dataclass(frozen=True)
class System:
    """One way to decode.

    Attributes:
        name: In tables and on the command line.
        engine: Who decodes: "vllm" or "transformers".
        arguments: What its constructor takes.
        max_batch_size: Most concurrent requests that it can serve; None for any number.
    """

    name: str
    engine: str
    arguments: Mapping[str, object]
    max_batch_size: int | None = None

    def serves(self, batch_size: int) -> bool:
        """Whether it can decode so many requests at a time."""
        return self.max_batch_size is None or batch_size <= self.max_batch_size


def table(
    model: PreparedModel, num_speculative_tokens: int, eager: bool, seed: int = 0
) -> dict[str, System]:
    """All systems for one model, in the order of SYSTEMS.

    Args:
        model: The target.
        num_speculative_tokens: K of every system that takes one.
        eager: Run vLLM without compilation.
        seed: Of the engines.
    """
    common = {
        "model": model.path,
        "dtype": model.dtype,
        "max_model_len": model.max_model_len,
        "max_num_seqs": MAX_NUM_SEQS,
        "kv_cache_memory_bytes": model.kv_cache_bytes,
        "enforce_eager": eager,
        "seed": seed,
        # Prompts and outputs are token ids throughout: tokenizing is not what is compared.
        "skip_tokenizer_init": True,
        # A prompt that comes again would skip its prefill.
        "enable_prefix_caching": False,
    }
    own = {"spec_model": f"self:{model.exit_layer}"}
    own_fixed = own | {"spec_tokens": num_speculative_tokens}
    transformers = {"model": model.path, "dtype": model.dtype}
    systems = (
        System("plain", "vllm", common),
        System("self", "vllm", common | own_fixed | _options(FIXED)),
        System("self-default", "vllm", common | own),
        System(
            "self-recompute",
            "vllm",
            common | own_fixed | _options(FIXED | {"exit_query_cache": False}),
        ),
        *_with_draft_vocabulary(model, common | own_fixed),
        System(
            "draft_model",
            "vllm",
            common
            | _speculative(
                method="draft_model",
                model=model.cut_path,
                num_speculative_tokens=num_speculative_tokens,
            ),
        ),
        System(
            "ngram",
            "vllm",
            common | _speculative(method="ngram", num_speculative_tokens=num_speculative_tokens),
        ),
        System("transformers", "transformers", transformers, max_batch_size=1),
        System(
            "transformers-early-exit",
            "transformers",
            transformers
            | {
                "exit_layer": model.exit_layer,
                "num_speculative_tokens": num_speculative_tokens,
            },
            max_batch_size=1,
        ),
    )
    return {system.name: system for system in systems}


def _with_draft_vocabulary(
    model: PreparedModel, arguments: Mapping[str, object]
) -> tuple[System, ...]:
    """As `self`, with the draft's LM head restricted; only where the model is to show that."""
    if not model.draft_vocab:
        return ()
    options = _options(FIXED | model.draft_vocab)
    return (System("self-draft-vocab", "vllm", {**arguments, **options}),)


def _options(layerskip: Mapping[str, object]) -> dict[str, object]:
    return {"additional_config": {"layerskip": dict(layerskip)}}


def _speculative(**config: object) -> dict[str, object]:
    return {"speculative_config": config}
