"""A decoder's forward in segments, cut at each exit layer (LayerSkip, section 4.3).

vLLM finds a compiled graph on disk by its configuration and by the name and line of `forward`, so
each segment needs a class of its own: two of one class would load each other's layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig


class ExitState(NamedTuple):
    """What leaves layer E, one row a token.

    vLLM's decoder layers pass two tensors. Both are kept: their sum, rounded, is not the same
    number, and verification that resumes from it would not be the full forward.

    The residual is kept as it was before rounding to the model's dtype. Where layer E follows in
    one compiled graph, inductor does not round it either; so the two segments compute, bit by bit,
    what vLLM's own graph does.
    """

    hidden_states: torch.Tensor  # [num_tokens, hidden_size], model dtype
    residual: torch.Tensor  # [num_tokens, hidden_size], float32

    def first(self, num_tokens: int) -> ExitState:
        """The states of the first tokens alone, as views."""
        return ExitState(*(states[:num_tokens] for states in self))


@support_torch_compile(
    dynamic_arg_dims={
        "input_ids": {0: "b"},
        "positions": {0: "b"},
        "inputs_embeds": {0: "b"},
    }
)
class EarlyLayers(nn.Module):
    """Embedding and decoder layers [0, E) of the first exit, and the final norm at E beside them.

    The norm belongs to the draft alone. Compiled with the layers it costs nothing; alone it would
    be eight small operations in each draft step.
    """

    def __init__(
        self,
        *,
        vllm_config: VllmConfig,
        prefix: str = "",
        decoder: nn.Module,
        layers: Sequence[nn.Module],
        norm: nn.Module,
    ) -> None:
        super().__init__()
        # Tuples hide the target's modules from nn.Module: registered here as well, every
        # parameter would have two names, and loading would look for both.
        # The embedding is looked up when it is used: LoRA puts another in its place.
        self._decoder = (decoder,)
        self._layers = tuple(layers)
        self._norm = (norm,)

    def forward(
        self,
        input_ids: torch.Tensor | None,  # [num_tokens], integers
        positions: torch.Tensor,  # [num_tokens], int64
        inputs_embeds: torch.Tensor | None = None,  # [num_tokens, hidden_size]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return hidden states, residual (float32), normed states: [num_tokens, hidden_size]."""
        hidden_states = (
            inputs_embeds if inputs_embeds is not None else self._decoder[0].embed_tokens(input_ids)
        )
        residual = None
        for layer in self._layers:
            hidden_states, residual = layer(positions, hidden_states, residual)
        assert residual is not None  # E >= 1
        return leave(hidden_states, residual, self._norm[0])


def leave(
    hidden_states: torch.Tensor,  # [num_tokens, hidden_size]
    residual: torch.Tensor,  # [num_tokens, hidden_size]
    norm: nn.Module,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return hidden states, residual (float32), normed states: [num_tokens, hidden_size]."""
    # Copies: without compilation the norm may overwrite what it is given.
    normed_states, _ = norm(hidden_states.clone(), residual.clone())
    return hidden_states, residual.float(), normed_states


class _BetweenExits(nn.Module):
    """Decoder layers from one exit to the next, and the final norm beside them."""

    def __init__(
        self,
        *,
        vllm_config: VllmConfig,
        prefix: str = "",
        layers: Sequence[nn.Module],
        norm: nn.Module,
    ) -> None:
        super().__init__()
        self._layers = tuple(layers)
        self._norm = (norm,)

    def _run(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        residual = residual.to(hidden_states.dtype)
        for layer in self._layers:
            hidden_states, residual = layer(positions, hidden_states, residual)
        return leave(hidden_states, residual, self._norm[0])


_STATES = {"positions": {0: "b"}, "hidden_states": {0: "b"}, "residual": {0: "b"}}


@support_torch_compile(dynamic_arg_dims=_STATES)
class SecondLayers(_BetweenExits):
    """Decoder layers from the first exit to the second."""

    def forward(
        self,
        positions: torch.Tensor,  # [num_tokens], int64
        hidden_states: torch.Tensor,  # [num_tokens, hidden_size]
        residual: torch.Tensor,  # [num_tokens, hidden_size], float32
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return hidden states, residual (float32), normed states: [num_tokens, hidden_size]."""
        return self._run(positions, hidden_states, residual)


@support_torch_compile(dynamic_arg_dims=_STATES)
class ThirdLayers(_BetweenExits):
    """Decoder layers from the second exit to the third."""

    def forward(
        self,
        positions: torch.Tensor,  # [num_tokens], int64
        hidden_states: torch.Tensor,  # [num_tokens, hidden_size]
        residual: torch.Tensor,  # [num_tokens, hidden_size], float32
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return hidden states, residual (float32), normed states: [num_tokens, hidden_size]."""
        return self._run(positions, hidden_states, residual)


@support_torch_compile(dynamic_arg_dims=_STATES)
class RemainingLayers(nn.Module):
    """Decoder layers [E, L) of the last exit, and the final norm."""

    def __init__(
        self,
        *,
        vllm_config: VllmConfig,
        prefix: str = "",
        layers: Sequence[nn.Module],
        norm: nn.Module,
    ) -> None:
        super().__init__()
        self._layers = tuple(layers)
        self._norm = (norm,)

    def forward(
        self,
        positions: torch.Tensor,  # [num_tokens], int64
        hidden_states: torch.Tensor,  # [num_tokens, hidden_size]
        residual: torch.Tensor,  # [num_tokens, hidden_size], float32
    ) -> torch.Tensor:
        """Return what the LM head takes, [num_tokens, hidden_size]."""
        residual = residual.to(hidden_states.dtype)
        for layer in self._layers:
            hidden_states, residual = layer(positions, hidden_states, residual)
        hidden_states, _ = self._norm[0](hidden_states, residual)
        return hidden_states
