"""Figures as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from layerskip_vllm.measure.spread import Spread

NOT_MEASURED = "-"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table with text in the first column and figures in the others."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(value: Spread, digits: int = 2) -> str:
    """Median and quartiles."""
    low, high = (f"{quartile:.{digits}f}" for quartile in (value.low_quartile, value.high_quartile))
    return f"{value.median:.{digits}f} [{low}, {high}]"


def number(value: float | None) -> str:
    """Two digits, or a dash."""
    return NOT_MEASURED if value is None else f"{value:.2f}"
