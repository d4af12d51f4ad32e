"""A decoder that ends at an early layer (LayerSkip, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from vllm.model_executor.models.utils import extract_layer_index


class EarlyExitMixin(nn.Module):
    """Lets a `*ForCausalLM` class of vLLM's load the first layers of a deeper checkpoint.

    The depth is the configuration's `num_hidden_layers`. Layers, KV cache and forward are the
    host's, and so are the final norm and the LM head, which every exit shares.
    """

    def is_unused_checkpoint_weight(self, name: str) -> bool:
        """Whether a weight is of a layer past the last; a file with no other weight is not read."""
        # A checkpoint in the format of Mistral's own release says `layers.` alone.
        of_a_layer = name.removeprefix("model.").startswith("layers.")
        return of_a_layer and extract_layer_index(name) >= self.config.num_hidden_layers

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load as the host does, but for the layers past the last, on which it would fail."""
        used = (item for item in weights if not self.is_unused_checkpoint_weight(item[0]))
        return super().load_weights(used)
