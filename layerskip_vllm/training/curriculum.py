"""Chooses the exits to train in a step and their loss weights (LayerSkip, section 4.1.2).

Exit E runs the first E decoder layers; the paper's layer l is exit E = l + 1. The last exit, E = L,
is always on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Curriculum(Protocol):
    """C(t, l) of the paper."""

    def exits(self, step: int, num_steps: int, num_layers: int) -> list[int]:
        """Return the early exits (E < num_layers) that are on in step t of T, ascending."""
        ...


@dataclass(frozen=True)
class Rotational:
    """Every R-th layer, shifted by one each step."""

    rotation: int

    def exits(self, step: int, num_steps: int, num_layers: int) -> list[int]:
        """Layers l with l mod R = t mod R."""
        first = step % self.rotation
        return [layer + 1 for layer in range(first, num_layers - 1, self.rotation)]


@dataclass(frozen=True)
class Gradual:
    """From the last layer down, one more exit each T / 2L steps; all are on after T / 2."""

    def exits(self, step: int, num_steps: int, num_layers: int) -> list[int]:
        """Layers l >= L - 1 - floor(2 L t / T)."""
        num_on = min(2 * num_layers * step // num_steps, num_layers - 1)
        return list(range(num_layers - num_on, num_layers))


@dataclass(frozen=True)
class Fixed:
    """The same exits in every step, for a known E."""

    exit_layers: Sequence[int]

    def exits(self, step: int, num_steps: int, num_layers: int) -> list[int]:
        """The configured exits."""
        return [exit_layer for exit_layer in sorted(self.exit_layers) if exit_layer < num_layers]


def exit_scale(layer: int, num_layers: int, e_scale: float) -> float:
    """Return e(l) of the paper: e_scale * l(l+1)/2; the last layer gets L-1 more."""
    if layer == num_layers - 1:
        return num_layers - 1 + e_scale * sum(range(num_layers - 1))
    return e_scale * sum(range(layer + 1))


def exit_weights(
    curriculum: Curriculum, step: int, num_steps: int, num_layers: int, e_scale: float
) -> dict[int, float]:
    """Return each exit's share of the step's loss: C(t, l) e(l), normalised over the exits that are
    on.

    Exits of weight 0 (layer 0, and all early ones at e_scale 0) are omitted, to save their logits.

    Returns:
        E -> weight, ascending, last exit included; the weights add up to 1.
    """
    exits = [*curriculum.exits(step, num_steps, num_layers), num_layers]
    scales = {exit_: exit_scale(exit_ - 1, num_layers, e_scale) for exit_ in exits}
    if num_layers == 1:
        return {1: 1.0}
    total = sum(scales.values())
    return {exit_: scale / total for exit_, scale in scales.items() if scale > 0}
