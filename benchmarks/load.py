"""A mixed load: prompts keep arriving while others decode."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layerskip_vllm.measure.engine import VllmEngine


@dataclass(frozen=True)
class Arrival:
    """A request of the load."""

    at_s: float  # from the start of the load
    prompt: Sequence[int]  # token ids
    max_tokens: int


@dataclass(frozen=True)
class LoadFigures:
    """One system's figures for one load.

    Attributes:
        tokens_per_s: Output tokens/s, from the first arrival to the end of the last request.
        time_per_output_token_ms: Median over the requests, each from its first to its last token.
        token_ids: Output of each request.
    """

    tokens_per_s: float
    time_per_output_token_ms: float
    token_ids: list[list[int]]


def arrivals(
    prompts: Sequence[Sequence[int]],
    *,
    num_requests: int,
    interval_s: float,
    max_tokens: int,
    poisson: bool,
    seed: int,
) -> list[Arrival]:
    """Draw a load.

    Args:
        prompts: Used in turn.
        num_requests: Number of arrivals.
        interval_s: Mean interval between arrivals.
        max_tokens: Longest output; each request draws between half of it and all of it, so that
            they end at different times.
        poisson: Draw random intervals instead of equal ones.
        seed: Of all draws.
    """
    rng = random.Random(seed)
    drawn, at_s = [], 0.0
    for index in range(num_requests):
        length = rng.randint(max_tokens // 2, max_tokens)
        drawn.append(Arrival(at_s, prompts[index % len(prompts)], length))
        at_s += rng.expovariate(1 / interval_s) if poisson else interval_s
    return drawn


def measure_load(engine: VllmEngine, load: Sequence[Arrival]) -> LoadFigures:
    """Add each request when it arrives, and step while any request runs."""
    waiting = list(reversed(load))
    rows: dict[str, int] = {}
    token_ids: list[list[int]] = [[] for _ in load]
    per_token_s = []
    start = time.perf_counter()
    while waiting or engine.engine.has_unfinished_requests():
        now = time.perf_counter() - start
        while waiting and waiting[-1].at_s <= now:
            arrival = waiting.pop()
            (req_id,) = engine.add([arrival.prompt], arrival.max_tokens)
            rows[req_id] = len(rows)
        if not engine.engine.has_unfinished_requests():
            time.sleep(waiting[-1].at_s - now)
            continue
        for output in engine.step():
            ids = token_ids[rows[output.request_id]]
            ids.extend(output.outputs[0].token_ids)
            if output.finished:
                stats = output.metrics
                seconds = stats.last_token_ts - stats.first_token_ts
                per_token_s.append(seconds / (len(ids) - 1))
    total_s = time.perf_counter() - start
    return LoadFigures(
        sum(map(len, token_ids)) / total_s, 1000 * statistics.median(per_token_s), token_ids
    )
