"""What a training knows about its exits, for the checkpoint's `config.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from layerskip_vllm.checkpoint.ideal import ideal_speedup
from layerskip_vllm.checkpoint.settings import (
    MAX_EXIT_LAYERS,
    CheckpointSettings,
    distinct_exits,
)


def known_settings(
    trained_exits: Sequence[int] | None, metrics: Mapping[str, float], num_layers: int
) -> CheckpointSettings | None:
    """Name the exits that promise most, or those that the recipe fixes.

    Agreement with the last layer stands for acceptance: exactly so for greedy drafts of the
    validation text.

    Args:
        trained_exits: E of a fixed curriculum; None: the curriculum trained all.
        metrics: Of an evaluation, with `eval_agreement_exit_E`; empty without validation data.
        num_layers: L.

    Returns:
        None where neither recipe nor evaluation tells good exits from others.
    """
    agreement = _agreement(metrics)
    candidates = sorted({e for e in trained_exits or range(1, num_layers) if e < num_layers})
    if not agreement:
        fixed = tuple(candidates[:MAX_EXIT_LAYERS])
        return CheckpointSettings(fixed) if trained_exits and fixed else None
    ranked = sorted(
        candidates, key=lambda e: ideal_speedup(agreement[e], e, num_layers), reverse=True
    )
    chosen = (
        tuple(ranked[:MAX_EXIT_LAYERS]) if trained_exits else distinct_exits(ranked, num_layers)
    )
    if not chosen:
        return None
    rates = tuple(round(agreement[exit_layer], 4) for exit_layer in chosen)
    return CheckpointSettings(chosen, acceptance_rate=rates)


def _agreement(metrics: Mapping[str, float]) -> dict[int, float]:
    """E -> agreement with the last layer's top-1 prediction."""
    found = {}
    for name, value in metrics.items():
        match = re.fullmatch(r"eval_agreement_exit_([0-9]+)", name)
        if match:
            found[int(match[1])] = value
    return found
