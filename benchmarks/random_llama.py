"""Llamas with random weights in the shapes of real models: speed depends only on the shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Shape:
    """The dimensions of a Llama, and how its random weights are drawn.

    Attributes:
        zipf_exponent: Row r of the LM head is scaled by (1 + r / 1024) ** -zipf_exponent, which
            makes low ids frequent in the output, as in a real vocabulary; 0 leaves all equal.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    intermediate_size: int
    is_tied: bool = False
    zipf_exponent: float = 0.0
    seed: int = 1

    def config(self) -> LlamaConfig:
        """The configuration for transformers."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_kv_heads,
            tie_word_embeddings=self.is_tied,
            max_position_embeddings=2048,
            # Each projection then keeps the scale of its input, so that every layer matters.
            initializer_range=self.hidden_size**-0.5,
            bos_token_id=None,
            eos_token_id=None,
        )

    @torch.no_grad()
    def build(self, dtype: torch.dtype, device: str = "cpu") -> LlamaForCausalLM:
        """Draw the weights; equal shapes get equal weights on equal devices.

        Args:
            dtype: Of the weights.
            device: Where they are drawn; a GPU takes seconds for a model of 7B.
        """
        from transformers import LlamaForCausalLM

        torch.manual_seed(self.seed)
        with torch.device(device):
            model = LlamaForCausalLM._from_config(self.config(), dtype=dtype)
            if self.zipf_exponent:
                ranks = torch.arange(self.vocab_size, dtype=torch.float32)
                scales = (1 + ranks / 1024) ** -self.zipf_exponent
                model.lm_head.weight *= scales.to(dtype).unsqueeze(1)
        return model.eval()


TINYLLAMA = Shape(
    vocab_size=32_000,
    hidden_size=2048,
    num_layers=22,
    num_heads=32,
    num_kv_heads=4,
    intermediate_size=5632,
)
"""TinyLlama-1.1B."""

LLAMA_128K = Shape(
    vocab_size=128_256,
    hidden_size=2048,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    intermediate_size=8192,
    is_tied=True,
    zipf_exponent=0.1,
)
"""Llama-3.2-1B: its LM head is as large as four of its layers."""

LLAMA_7B = Shape(
    vocab_size=32_000,
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    intermediate_size=11_008,
)
"""Llama-2-7B: large enough that a GPU's memory, not its host, bounds a step."""

SMALL = Shape(
    vocab_size=320,
    hidden_size=128,
    num_layers=6,
    num_heads=4,
    num_kv_heads=2,
    intermediate_size=384,
)
"""Starts in seconds, for tests and trials."""


class LateLayers:
    """Layers [E, L) of a model, whose contribution can be scaled in place."""

    def __init__(self, model: LlamaForCausalLM, exit_layer: int) -> None:
        """Keep a copy of the current weights, which are scale 1.

        Args:
            model: The model.
            exit_layer: E.
        """
        self._weights = [
            (projection.weight, projection.weight.detach().clone())
            for layer in model.model.layers[exit_layer:]
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj)
        ]

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Scale what the layers add to the residual stream; 0 leaves only the first E layers."""
        for weight, original in self._weights:
            weight.copy_(original * factor)
