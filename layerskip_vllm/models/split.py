"""A model whose forward can stop at and resume from each exit layer (LayerSkip, section 4.3)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import nn
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig

from layerskip_vllm.models.segments import (
    EarlyLayers,
    ExitState,
    RemainingLayers,
    SecondLayers,
    ThirdLayers,
)

Observe = Callable[[int, torch.Tensor], None]
"""Called with an exit's index and what `run_early_layers` returns there, [num_tokens, hidden_size],
ready for `compute_logits`."""


class SplitForwardMixin(nn.Module):
    """Gives a `*ForCausalLM` class of vLLM's a forward that can stop at and resume from exits.

    With exits E_1 < .. < E_J the segments are [0, E_1), [E_1, E_2), .., [E_J, L); `self:E` has two.

    The host class must hold a decoder `self.model` with `embed_tokens`, `layers` and `norm`, its
    layers called as `layer(positions, hidden_states, residual)`. Parameters, their names and their
    loading stay the host's, and so does the full forward: compiled, it is one graph, as it is in an
    engine without us.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        exit_layers = vllm_config.speculative_config.layerskip.exit_layers
        decoder, norm = self.model, self.model.norm
        with set_model_tag("layerskip_early"):
            self.early_layers = EarlyLayers(
                vllm_config=vllm_config,
                decoder=decoder,
                layers=decoder.layers[: exit_layers[0]],
                norm=norm,
            )
        between = []
        kinds = (SecondLayers, ThirdLayers)
        for kind, (start, end) in zip(kinds, pairwise(exit_layers), strict=False):
            with set_model_tag(f"layerskip_{start}_to_{end}"):
                layers = decoder.layers[start:end]
                between.append(kind(vllm_config=vllm_config, layers=layers, norm=norm))
        self.layers_between = nn.ModuleList(between)
        with set_model_tag("layerskip_remaining"):
            self.remaining_layers = RemainingLayers(
                vllm_config=vllm_config,
                layers=decoder.layers[exit_layers[-1] :],
                norm=norm,
            )
        self.num_exits = len(exit_layers)
        self.early_attn_layer_names = [
            layer.self_attn.attn.layer_name for layer in decoder.layers[: exit_layers[-1]]
        ]
        """Of the layers that draft at the last exit."""

    def forward(  # type: ignore[no-untyped-def]
        self,
        input_ids,
        positions,
        intermediate_tensors=None,
        inputs_embeds=None,
        exit_state: Callable[[], ExitState] | None = None,  # [num_tokens, hidden_size] each
        exit_index: int = 0,
        observe: Observe | None = None,
    ):
        """Run the full forward, or where exit states are given the remaining layers alone.

        They are a function, so that a CUDA graph of this forward reads them anew each time. With
        `observe` and no exit states the full forward runs by segments; see `run_all_segments`.
        """
        if exit_state is not None:
            return self.run_remaining_layers(positions, exit_state(), exit_index, observe)
        if observe is not None:
            return self.run_all_segments(observe, input_ids, positions, inputs_embeds)
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds)

    def run_early_layers(
        self,
        input_ids: torch.Tensor | None,  # [num_tokens], integers
        positions: torch.Tensor,  # [num_tokens], int64
        inputs_embeds: torch.Tensor | None = None,  # [num_tokens, hidden_size]
        exit_index: int = 0,
        observe: Observe | None = None,
    ) -> tuple[ExitState, torch.Tensor]:
        """Embed and run layers [0, E) of an exit; writes their KV at the forward context's slots.

        `observe` sees the exits up to it.

        Returns:
            (exit_state, normed_states): what layer E passes on, and what the early exit makes of
            it, [num_tokens, hidden_size], ready for `compute_logits`.
        """
        *states, normed = self.early_layers(input_ids, positions, inputs_embeds)
        if observe is not None:
            observe(0, normed)
        for index in range(exit_index):
            *states, normed = self.layers_between[index](positions, *states)
            if observe is not None:
                observe(index + 1, normed)
        return ExitState(*states), normed

    def run_remaining_layers(
        self,
        positions: torch.Tensor,  # [num_tokens], int64
        exit_state: ExitState,
        exit_index: int = 0,
        observe: Observe | None = None,
    ) -> torch.Tensor:
        """Run layers [E, L) of an exit and the final norm. Overwrites `exit_state`.

        `observe` sees the exits after it.

        Returns:
            [num_tokens, hidden_size], ready for `compute_logits`.
        """
        states = list(exit_state)
        for index in range(exit_index, self.num_exits - 1):
            *states, normed = self.layers_between[index](positions, *states)
            if observe is not None:
                observe(index + 1, normed)
        return self.remaining_layers(positions, *states)

    def run_all_segments(
        self,
        observe: Observe,
        input_ids: torch.Tensor | None,  # [num_tokens], integers
        positions: torch.Tensor,  # [num_tokens], int64
        inputs_embeds: torch.Tensor | None = None,  # [num_tokens, hidden_size]
    ) -> torch.Tensor:
        """Run the full forward, and show `observe` every exit.

        Returns:
            [num_tokens, hidden_size], ready for `compute_logits`.
        """
        last = self.num_exits - 1
        states, _ = self.run_early_layers(input_ids, positions, inputs_embeds, last, observe)
        return self.remaining_layers(positions, *states)
