"""What a child process says to its parent beside the results of commands."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.memory import Memory


@dataclass(frozen=True)
class Ready:
    """The system can answer.

    Attributes:
        engine_start_s: Seconds that its constructor took: loading, compiling, caches.
        starting: Memory until then.
        kv_cache_tokens: That fit the budget; None where the system has no such budget.
    """

    engine_start_s: float
    starting: Memory
    kv_cache_tokens: int | None


@dataclass(frozen=True)
class Failure:
    """A command failed."""

    traceback: str
