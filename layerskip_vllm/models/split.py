"""A decoder's forward in two segments, cut at the exit layer (LayerSkip, section 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn
from vllm.compilation.backends import set_model_tag
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
    """Embedding and decoder layers [0, E), and the final norm at layer E beside them.

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
        # Copies: without compilation the norm may overwrite what it is given.
        normed_states, _ = self._norm[0](hidden_states.clone(), residual.clone())
        return hidden_states, residual.float(), normed_states


@support_torch_compile(
    dynamic_arg_dims={
        "positions": {0: "b"},
        "hidden_states": {0: "b"},
        "residual": {0: "b"},
    }
)
class RemainingLayers(nn.Module):
    """Decoder layers [E, L) and the final norm."""

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


class SplitForwardMixin(nn.Module):
    """Gives a `*ForCausalLM` class of vLLM's a forward that can stop at and resume from layer E.

    The host class must hold a decoder `self.model` with `embed_tokens`, `layers` and `norm`, its
    layers called as `layer(positions, hidden_states, residual)`. Parameters, their names and their
    loading stay the host's, and so does the full forward: compiled, it is one graph, as it is in an
    engine without us.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        exit_layer = vllm_config.speculative_config.layerskip.exit_layer
        decoder = self.model
        with set_model_tag("layerskip_early"):
            self.early_layers = EarlyLayers(
                vllm_config=vllm_config,
                decoder=decoder,
                layers=decoder.layers[:exit_layer],
                norm=decoder.norm,
            )
        with set_model_tag("layerskip_remaining"):
            self.remaining_layers = RemainingLayers(
                vllm_config=vllm_config,
                layers=decoder.layers[exit_layer:],
                norm=decoder.norm,
            )
        self.early_attn_layer_names = [
            layer.self_attn.attn.layer_name for layer in decoder.layers[:exit_layer]
        ]

    def forward(  # type: ignore[no-untyped-def]
        self,
        input_ids,
        positions,
        intermediate_tensors=None,
        inputs_embeds=None,
        exit_state: Callable[[], ExitState] | None = None,  # [num_tokens, hidden_size] each
    ):
        """Run the full forward, or where exit states are given the remaining layers alone.

        They are a function, so that a CUDA graph of this forward reads them anew each time.
        """
        if exit_state is not None:
            return self.run_remaining_layers(positions, exit_state())
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds)

    def run_early_layers(
        self,
        input_ids: torch.Tensor | None,  # [num_tokens], integers
        positions: torch.Tensor,  # [num_tokens], int64
        inputs_embeds: torch.Tensor | None = None,  # [num_tokens, hidden_size]
    ) -> tuple[ExitState, torch.Tensor]:
        """Embed and run layers [0, E); writes their KV at the forward context's slots.

        Returns:
            (exit_state, normed_states): what layer E passes on, and what the early exit makes of
            it, [num_tokens, hidden_size], ready for `compute_logits`.
        """
        hidden_states, residual, normed = self.early_layers(input_ids, positions, inputs_embeds)
        return ExitState(hidden_states, residual), normed

    def run_remaining_layers(
        self,
        positions: torch.Tensor,  # [num_tokens], int64
        exit_state: ExitState,
    ) -> torch.Tensor:
        """Run layers [E, L) and the final norm. Overwrites `exit_state`.

        Returns:
            [num_tokens, hidden_size], ready for `compute_logits`.
        """
        return self.remaining_layers(positions, *exit_state)
