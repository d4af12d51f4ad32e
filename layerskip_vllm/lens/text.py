"""How a token looks in a table or a figure, and which layers of many are shown."""

from __future__ import annotations

VISIBLE = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}
EMPTY = "∅"


def visible(text: str) -> str:
    """Show whitespace and what cannot be printed."""
    shown = "".join(
        VISIBLE.get(char, char if char.isprintable() else f"\\x{ord(char):02x}") for char in text
    )
    return shown or EMPTY


def clip(text: str, max_chars: int) -> str:
    """Cut a text to so many characters, the last of them an ellipsis."""
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


def evenly_spaced(first: int, last: int, max_count: int) -> list[int]:
    """At most `max_count` whole numbers from first to last, both included; max_count >= 2."""
    count = min(max_count, last - first + 1)
    if count == 1:
        return [last]
    return [round(first + (last - first) * i / (count - 1)) for i in range(count)]
