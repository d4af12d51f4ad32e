"""Messages from a child process to its parent, besides the results of commands."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.memory import Memory


@dataclass(frozen=True)
class Ready:
    """The system is ready for commands.

    Attributes:
        engine_start_s: Seconds of the engine's constructor: loading, compiling, caches.
        starting: Memory used until then.
        kv_cache_tokens: Tokens that fit in the KV cache's budget; None if it has no budget.
    """

    engine_start_s: float
    starting: Memory
    kv_cache_tokens: int | None


@dataclass(frozen=True)
class Failure:
    """A command failed."""

    traceback: str
