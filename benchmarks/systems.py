"""The compared systems and their engine arguments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.models import PreparedModel
from layerskip_vllm.config import AUTO_MODEL

SYSTEMS = (
    "plain",
    "self",
    "self-default",
    "self-auto",
    "self-recompute",
    "self-draft-vocab",
    "draft_model",
    "ngram",
    "transformers",
    "transformers-early-exit",
)
"""All names, in the order of the table."""

FIXED_K = "self"
"""The system that the report compares with the row-aware ideal; it is in every group."""

DRAFT_VOCAB_COUNTS = "draft_vocab_counts"

FIXED: dict[str, object] = {"adaptive": False}
"""Options that make `self:E` draft exactly K tokens in every step."""

MAX_NUM_SEQS = 128
"""Enough to measure a plain forward of 128 rows."""


@dataclass(frozen=True)
class System:
    """One way to decode.

    Attributes:
        name: In tables and on the command line.
        engine: "vllm" or "transformers".
        arguments: Of the engine's constructor.
        max_batch_size: Limit of concurrent requests; None for no limit.
        variables: Environment variables of its process, which override the common ones.
    """

    name: str
    engine: str
    arguments: Mapping[str, object]
    max_batch_size: int | None = None
    variables: Mapping[str, str] = field(default_factory=dict)

    def serves(self, batch_size: int) -> bool:
        """Whether it can decode this many requests at a time."""
        return self.max_batch_size is None or batch_size <= self.max_batch_size


def table(
    model: PreparedModel,
    num_speculative_tokens: int,
    eager: bool,
    seed: int = 0,
    max_num_seqs: int = MAX_NUM_SEQS,
) -> dict[str, System]:
    """All systems for one model, in the order of SYSTEMS.

    Args:
        model: The target.
        num_speculative_tokens: K of every system that takes one.
        eager: Run vLLM without compilation.
        seed: Of the engines.
        max_num_seqs: Most requests that a vLLM engine runs at a time.
    """
    common = _common(model, eager, seed, max_num_seqs)
    systems = (
        System("plain", "vllm", common),
        *_self_speculation(model, num_speculative_tokens, common),
        *_vllm_drafts(model, num_speculative_tokens, common),
        *_transformers(model, num_speculative_tokens),
    )
    return {system.name: system for system in systems}


def _common(model: PreparedModel, eager: bool, seed: int, max_num_seqs: int) -> dict[str, object]:
    """Arguments of all vLLM engines."""
    return {
        "model": model.path,
        "dtype": model.dtype,
        "max_model_len": model.max_model_len,
        "max_num_seqs": max_num_seqs,
        "kv_cache_memory_bytes": model.kv_cache_bytes,
        "enforce_eager": eager,
        "seed": seed,
        # Prompts and outputs are token ids: tokenizing is not measured.
        "skip_tokenizer_init": True,
        # A repeated prompt would skip its prefill.
        "enable_prefix_caching": False,
    }


def _self_speculation(
    model: PreparedModel, num_speculative_tokens: int, common: Mapping[str, object]
) -> list[System]:
    own = {**common, "spec_model": f"self:{model.exit_layer}"}
    own_fixed = own | {"spec_tokens": num_speculative_tokens}
    systems = [
        System("self", "vllm", own_fixed | _options(FIXED)),
        System("self-default", "vllm", own),
        System("self-auto", "vllm", _auto(model, common)),
        System("self-recompute", "vllm", own_fixed | _options(FIXED | {"exit_query_cache": False})),
    ]
    if model.draft_vocab:
        options = _options(FIXED | model.draft_vocab)
        systems.append(System("self-draft-vocab", "vllm", own_fixed | options))
    return systems


def _auto(model: PreparedModel, common: Mapping[str, object]) -> dict[str, object]:
    """Arguments of `self:auto`. Without a tokenizer only a file of counts ranks the tokens."""
    counts = {key: value for key, value in model.draft_vocab.items() if key == DRAFT_VOCAB_COUNTS}
    return {**common, "spec_model": AUTO_MODEL} | (_options(counts) if counts else {})


def _vllm_drafts(
    model: PreparedModel, num_speculative_tokens: int, common: Mapping[str, object]
) -> list[System]:
    def speculative(**config: object) -> dict[str, object]:
        config["num_speculative_tokens"] = num_speculative_tokens
        return {**common, "speculative_config": config}

    return [
        System("draft_model", "vllm", speculative(method="draft_model", model=model.cut_path)),
        System("ngram", "vllm", speculative(method="ngram")),
    ]


def _transformers(model: PreparedModel, num_speculative_tokens: int) -> list[System]:
    plain: dict[str, object] = {"model": model.path, "dtype": model.dtype}
    early_exit = plain | {
        "exit_layer": model.exit_layer,
        "num_speculative_tokens": num_speculative_tokens,
    }
    return [
        System("transformers", "transformers", plain, max_batch_size=1),
        System("transformers-early-exit", "transformers", early_exit, max_batch_size=1),
    ]


def _options(layerskip: Mapping[str, object]) -> dict[str, object]:
    return {"additional_config": {"layerskip": dict(layerskip)}}
