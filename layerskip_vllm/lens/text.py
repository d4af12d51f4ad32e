"""Formats tokens for tables and plots, and picks the layers to show."""

from __future__ import annotations

VISIBLE = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}
EMPTY = "∅"


def visible(text: str) -> str:
    """Make whitespace and unprintable characters visible."""
    shown = "".join(
        VISIBLE.get(char, char if char.isprintable() else f"\\x{ord(char):02x}") for char in text
    )
    return shown or EMPTY


def clip(text: str, max_chars: int) -> str:
    """Cut a text to `max_chars`, ending in an ellipsis."""
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def evenly_spaced(first: int, last: int, max_count: int) -> list[int]:
    """Return at most `max_count` >= 2 whole numbers from first to last, both included."""
    count = min(max_count, last - first + 1)
    if count == 1:
        return [last]
    return [round(first + (last - first) * i / (count - 1)) for i in range(count)]
