"""What a check found; imports no vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        section: What it belongs to.
        name: What was looked at.
        status: warn: it runs, and perhaps not as the user expects. fail: it does not run.
        found: What was found, in words.
        advice: The way out of a warning or failure; empty: none is needed.
        values: What was found, for programs; names carry units.
    """

    section: str
    name: str
    status: Status
    found: str
    advice: str = ""
    values: Mapping[str, object] = field(default_factory=dict)


def will_run(checks: Sequence[Check]) -> bool:
    """Whether no check failed."""
    return all(check.status != "fail" for check in checks)
