"""Layer dropout: skips whole decoder layers, per sample (LayerSkip, section 4.1.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import nn

KeptRows = list[list[int]]
"""Per layer, the rows of the micro-batch that run it."""


@dataclass(frozen=True)
class LayerDropout:
    """p(l, t) = S(t) * D(l) * p_max, the probability that step t skips layer l.

    Attributes:
        num_layers: L.
        p_max: The rate of the last layer, in [0, 1).
        schedule: `constant` has S(t) = 1, for continual pre-training and fine-tuning;
            `exponential` has S(t) = exp(t ln2 / (T-1)) - 1, for training from scratch.
        seed: The same on every rank. A draw depends only on the seed, the step and the sample's
            place in the global batch. So neither the number of ranks nor gradient accumulation
            changes it, and every rank can compute the others' draws.
    """

    num_layers: int
    p_max: float
    schedule: Literal["constant", "exponential"] = "constant"
    seed: int = 0

    def rates(self, step: int, num_steps: int) -> np.ndarray:
        """Return p(l, t) of every layer, [num_layers], float64."""
        return self._time_scale(step, num_steps) * self._layer_scale() * self.p_max

    def kept_rows(
        self, step: int, num_steps: int, first_row: int, num_rows: int
    ) -> KeptRows | None:
        """Draw the layers that each sample of a micro-batch runs.

        Args:
            step: t, counted from 0.
            num_steps: T.
            first_row: The place of the micro-batch's first sample in the step's global batch.
            num_rows: Samples in the micro-batch.

        Returns:
            Rows per layer; None if p_max is 0.
        """
        if self.p_max == 0:
            return None
        # Row by row: a sample's draw must not depend on the number of later samples.
        generator = np.random.default_rng([self.seed, step])
        draws = generator.random((first_row + num_rows, self.num_layers))[first_row:]
        kept = draws >= self.rates(step, num_steps)
        return [np.flatnonzero(kept[:, layer]).tolist() for layer in range(self.num_layers)]

    def _time_scale(self, step: int, num_steps: int) -> float:
        if self.schedule == "constant" or num_steps == 1:
            return 1.0
        return math.exp(step * math.log(2) / (num_steps - 1)) - 1

    def _layer_scale(self) -> np.ndarray:
        if self.num_layers == 1:
            return np.zeros(1)
        return np.exp(np.arange(self.num_layers) * math.log(2) / (self.num_layers - 1)) - 1


class SkippingForward:
    """Forward of a decoder layer that computes only the rows that keep the layer.

    It replaces `layer.forward` and takes one more argument, `kept_rows`. transformers passes it to
    every layer like its own keyword arguments, so gradient checkpointing recomputes the same rows.
    """

    def __init__(self, layer: nn.Module, layer_index: int) -> None:
        self._layer = layer
        self._forward: Callable[..., torch.Tensor] = layer.forward
        self._layer_index = layer_index

    def __call__(
        self,
        hidden_states: torch.Tensor,  # [num_rows, num_tokens, hidden_size]
        *args: object,
        kept_rows: KeptRows | None = None,
        **kwargs: object,
    ) -> torch.Tensor:
        """Return [num_rows, num_tokens, hidden_size]; dropped rows pass unchanged."""
        num_rows = len(hidden_states)
        kept = list(range(num_rows)) if kept_rows is None else kept_rows[self._layer_index]
        if len(kept) == num_rows:
            return self._forward(hidden_states, *args, **kwargs)
        if not kept:
            trained = (p for p in self._layer.parameters() if p.requires_grad)
            return _Skipped.apply(hidden_states, *trained)
        rows = torch.tensor(kept, device=hidden_states.device)
        args, kwargs = _select((args, kwargs), rows, num_rows)
        output = self._forward(hidden_states[rows], *args, **kwargs)
        return hidden_states.index_copy(0, rows, output)


class _Skipped(torch.autograd.Function):
    """Passes states unchanged and gives the layer's parameters a gradient of zero.

    Without a gradient, DDP and FSDP would hang if another rank's samples keep the layer, and the
    optimizer would step differently than one process with all samples.
    """

    @staticmethod
    def forward(ctx, hidden_states, *parameters):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*parameters)
        return hidden_states.clone()  # FSDP warns of views

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


def install_layer_dropout(layers: nn.ModuleList) -> None:
    """Make every layer of a transformers decoder skip rows by `kept_rows`."""
    for layer_index, layer in enumerate(layers):
        layer.forward = SkippingForward(layer, layer_index)


def _select(value, rows: torch.Tensor, num_rows: int):  # type: ignore[no-untyped-def]
    """Select rows of every tensor in `value` that has one row per sample."""
    if isinstance(value, torch.Tensor):
        return value[rows] if value.dim() > 1 and len(value) == num_rows > 1 else value
    if isinstance(value, tuple):
        return tuple(_select(item, rows, num_rows) for item in value)
    if isinstance(value, dict):
        return {key: _select(item, rows, num_rows) for key, item in value.items()}
    return value
