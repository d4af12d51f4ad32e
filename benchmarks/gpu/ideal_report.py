"""The report's table of the row-aware ideal: the greatest gain of `self:E`, from t(M)."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.forward_time import ForwardTime, ForwardTimes
from benchmarks.gpu.models import MODELS
from benchmarks.gpu.records import Forward, Speed
from benchmarks.gpu.speed import NUM_SPECULATIVE_TOKENS, PLAIN, columns_of
from benchmarks.ideal import IdealCycle
from benchmarks.markdown import table

FIXED_K = ("self-v2", "self-v1")
"""Columns whose cycles draft K tokens with the whole LM head, as the ideal does."""


def ideals(model: str, speeds: Sequence[Speed], forwards: Sequence[Forward]) -> list[str]:
    """The table of one model; nothing if t(M) or all those columns are missing."""
    times = ForwardTimes(
        {
            record.num_rows: ForwardTime(
                (record.step_ms - record.head_ms) / 1000, record.head_ms / 1000
            )
            for record in forwards
        }
    )
    plain = {record.batch_size: record for record in speeds if record.system == PLAIN}
    titles = {column.name: column.title for column in columns_of(model)}
    rows = [
        _row(titles[own.system], own, plain[own.batch_size], times, model)
        for own in speeds
        if own.system in FIXED_K and own.batch_size in plain
        if {own.batch_size, _verified(own)} <= times.measured.keys()
    ]
    if not rows:
        return []
    header = ["", "tokens per cycle", "ideal", "measured", "measured / ideal"]
    return [
        "Speed-up over plain that a cycle would have if it cost only its share of plain vLLM's "
        "own steps at as many rows, at the tokens per cycle that were measured; and the measured "
        "one.",
        table(header, rows),
    ]


def _verified(own: Speed) -> int:
    return own.batch_size * (NUM_SPECULATIVE_TOKENS + 1)


def _row(title: str, own: Speed, plain: Speed, times: ForwardTimes, model: str) -> list[str]:
    settings = MODELS[model]
    cycle = IdealCycle.of(
        times,
        batch_size=own.batch_size,
        num_speculative_tokens=NUM_SPECULATIVE_TOKENS,
        exit_layer=settings.exit_layer,
        num_layers=settings.shape.num_layers,
    )
    ideal = cycle.speedup(own.tokens_per_step)
    measured = own.tokens_per_s / plain.tokens_per_s
    return [
        f"{title}, batch {own.batch_size}",
        f"{own.tokens_per_step:.2f}",
        f"{ideal:.2f}",
        f"{measured:.2f}",
        f"{measured / ideal:.2f}",
    ]
