"""What was promised: ratios of medians in one run that self-speculation must reach."""

from __future__ import annotations

from dataclasses import dataclass

IDEAL = "ideal"
"""In the place of a system: the row-aware ideal."""


@dataclass(frozen=True)
class Threshold:
    """One row of the table.

    Attributes:
        model: Whose figures.
        numerator: The system that must be fast.
        denominator: The system that it is compared with, or IDEAL: then its speed-up over plain is
            compared with the ideal one.
        description: How the row is named.
        at_least: Batch size -> least ratio of output tokens/s.
    """

    model: str
    numerator: str
    denominator: str
    description: str
    at_least: dict[int, float]


def _by_batch_size(*values: float) -> dict[int, float]:
    return dict(zip((1, 2, 4, 8, 16), values, strict=False))


THRESHOLDS = (
    Threshold(
        "dialled",
        "self",
        IDEAL,
        "fixed K: speed-up over plain / row-aware ideal",
        _by_batch_size(0.92, 0.90, 0.90, 0.90, 0.90),
    ),
    Threshold(
        "dialled",
        "self",
        "draft_model",
        "fixed K: over `draft_model` with equal E and K",
        _by_batch_size(1.10, 1.15, 1.20, 1.25, 1.25),
    ),
    Threshold(
        "dialled",
        "self",
        "self-recompute",
        "fixed K: exit query cache on / off",
        _by_batch_size(1.00, 1.05, 1.08, 1.10, 1.10),
    ),
    Threshold(
        "dialled",
        "self",
        "transformers-early-exit",
        "fixed K: over transformers' early-exit assistant",
        _by_batch_size(2.0),
    ),
    Threshold(
        "dialled",
        "self-default",
        "plain",
        "default settings: over plain",
        _by_batch_size(1.65, 1.45, 1.20, 1.05, 1.00),
    ),
    Threshold(
        "trained",
        "self-default",
        "plain",
        "default settings: over plain",
        _by_batch_size(1.6, 1.4, 1.15, 1.00, 1.00),
    ),
    Threshold(
        "dialled-128k",
        "self-default",
        "plain",
        "default settings: over plain",
        _by_batch_size(0.97, 0.97, 0.97, 0.97, 0.97),
    ),
    Threshold(
        "untrained",
        "self-default",
        "plain",
        "default settings: over plain",
        _by_batch_size(0.97, 0.97, 0.97, 0.97, 0.97),
    ),
)
