"""What was promised beside speed: memory, capacity, start-up, and the draft vocabulary."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from benchmarks.result import ModelResult, SystemResult

MEMORY_SHARE = 0.01
"""Of the weights, that self-speculation may hold beyond its exit query cache."""

START_RATIO = 1.10
DRAFT_VOCAB_RATIO = 1.4
DRAFT_VOCAB_LOSS = 0.03

DRAFT_PARTS = ("draft: layers", "draft: LM head", "draft: rest")


@dataclass(frozen=True)
class Check:
    """One promise.

    Attributes:
        description: What must hold.
        measured: What was found, with its unit.
        is_reached: Whether it holds.
    """

    description: str
    measured: str
    is_reached: bool


def checks(result: ModelResult) -> list[Check]:
    """All that this run can tell."""
    plain, default = result.system("plain"), result.system("self-default")
    found = []
    if plain is not None and default is not None:
        found += [_memory(result, plain, default), _capacity(plain, default)]
        if len(plain.starts) > 1:
            found.append(_start(plain, default))
    own, restricted = result.system("self"), result.system("self-draft-vocab")
    if own is not None and restricted is not None and own.where:
        found += _draft_vocabulary(own, restricted)
    return found


def _memory(result: ModelResult, plain: SystemResult, own: SystemResult) -> Check:
    limit = MEMORY_SHARE * result.weight_bytes + result.exit_query_cache_bytes
    over = own.anonymous_bytes - plain.anonymous_bytes
    return Check(
        f"resident memory over plain <= 1 % of the weights + the exit query cache "
        f"({result.exit_query_cache_bytes / 2**20:.1f} MiB) = {limit / 2**20:.1f} MiB",
        f"{over / 2**20:+.1f} MiB",
        over <= limit,
    )


def _capacity(plain: SystemResult, own: SystemResult) -> Check:
    return Check(
        f"the KV cache holds as many tokens as plain's ({plain.kv_cache_tokens})",
        f"{own.kv_cache_tokens} tokens",
        own.kv_cache_tokens == plain.kv_cache_tokens,
    )


def _start(plain: SystemResult, own: SystemResult) -> Check:
    """The engine's constructor: imports, the same for both, would flatter the ratio."""
    plain_s, own_s = (
        statistics.median(start.engine_s for start in system.starts[1:]) for system in (plain, own)
    )
    return Check(
        f"the engine starts at most 10 % slower than plain's ({plain_s:.1f} s)",
        f"{own_s:.1f} s",
        own_s <= START_RATIO * plain_s,
    )


def _draft_vocabulary(full: SystemResult, restricted: SystemResult) -> list[Check]:
    full_ms, restricted_ms = (
        sum(system.where[0].parts_ms[part] for part in DRAFT_PARTS) for system in (full, restricted)
    )
    found = [
        Check(
            f"a draft step with the draft vocabulary is {DRAFT_VOCAB_RATIO} times faster",
            f"{full_ms / restricted_ms:.2f}",
            full_ms >= DRAFT_VOCAB_RATIO * restricted_ms,
        )
    ]
    rates = [system.batches[0].acceptance_per_token for system in (full, restricted)]
    if rates[0] and rates[1]:
        loss = 1 - rates[1] / rates[0]
        found.append(
            Check(
                "its acceptance is less than 3 % lower",
                f"{100 * loss:.1f} %",
                loss < DRAFT_VOCAB_LOSS,
            )
        )
    return found
