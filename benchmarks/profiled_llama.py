"""A random Llama whose exits are right at rates that depend on the text, each rate adjustable.

The vocabulary has several sets. The embedding of a token flags its set in a hidden dimension that
no layer writes. The LM head rules out the tokens of other sets, so a text keeps to its set. Layers
[0, E1) are ordinary random ones. In each layer from E1 on, attention writes nothing, and the
gate of the MLP sees only the flag. At strength 0 the layer leaves the texts of that set unchanged;
a stronger gate changes more of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

FLAG = 1.0
"""Of the embedding in its set's dimension."""

EMBEDDING_STD = 0.1
"""Of the other elements: little beside what the first layers write, or the last token alone would
decide the next one and texts would loop."""

PENALTY = 60.0
"""Of the LM head in the dimensions of other sets: far more than logits differ."""


class ProfiledLlama:
    """The gates of a model whose weights it has changed in place.

    Attributes:
        model: The model.
        first_layer: E1, the first layer with gates.
        num_sets: Sets of the vocabulary.
    """

    @torch.no_grad()
    def __init__(self, model: LlamaForCausalLM, first_layer: int, num_sets: int) -> None:
        """Flag the sets, and close all gates.

        Args:
            model: With random weights; embedding and LM head must not be tied.
            first_layer: E1.
            num_sets: Sets of the vocabulary.
        """
        self.model, self.first_layer, self.num_sets = model, first_layer, num_sets
        embedding, lm_head = model.model.embed_tokens.weight, model.lm_head.weight
        embedding *= EMBEDDING_STD * embedding.shape[1] ** 0.5
        embedding[:, :num_sets] = 0
        lm_head[:, :num_sets] = -PENALTY
        for index in range(num_sets):
            ids = token_range(len(embedding), num_sets, index)
            embedding[ids.start : ids.stop, index] = FLAG
            lm_head[ids.start : ids.stop, index] = 0
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for reader in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.up_proj):
                reader.weight[:, :num_sets] = 0
            mlp.gate_proj.weight[:, :num_sets] = 0
            for writer in (attention.o_proj, mlp.down_proj):
                writer.weight[:num_sets] = 0
        for layer in model.model.layers[first_layer:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.gate_proj.weight.zero_()

    @torch.no_grad()
    def set_gates(self, layers: range, set_index: int, strength: float) -> None:
        """Set how strongly layers change the texts of one set.

        Args:
            layers: Of the model, from E1 on.
            set_index: The set.
            strength: 0 closes the gate; at 0.5 a layer writes a multiple of what was there.
        """
        for layer in self.model.model.layers[layers.start : layers.stop]:
            layer.mlp.gate_proj.weight[:, set_index] = strength


def token_range(vocab_size: int, num_sets: int, index: int) -> range:
    """The token ids of one set; a remainder of the vocabulary belongs to none."""
    size = vocab_size // num_sets
    return range(index * size, (index + 1) * size)
