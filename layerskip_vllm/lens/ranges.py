"""Ranges of whole numbers on a command line: `2-8`, `2,4,8`, `1-3,6`."""

from __future__ import annotations

import re


def parse_range(text: str, low: int, high: int, flag: str) -> list[int]:
    """Return the numbers of a range, ascending, each once.

    Args:
        text: Numbers and `from-to` spans, separated by commas.
        low: The least number allowed.
        high: The greatest number allowed.
        flag: The command-line flag, for errors.

    Raises:
        ValueError: The text is not a range, or a number lies outside [low, high].
    """
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]+)\s*(?:-\s*([0-9]+)\s*)?", part)
        if match is None:
            raise ValueError(f"{flag}={text!r}: expected a range such as 2-8 or 2,4,8")
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise ValueError(f"{flag}={text!r}: {part.strip()} runs backwards")
        if first < low or last > high:
            raise ValueError(f"{flag}={text!r} must stay in [{low}, {high}]")
        numbers.update(range(first, last + 1))
    return sorted(numbers)
