"""Model classes that end at an early layer (LayerSkip, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from vllm.model_executor.models.utils import extract_layer_index


class EarlyExitMixin(nn.Module):
    """Loads only the first layers of a checkpoint into a `*ForCausalLM` class of vLLM.

    The configuration's `num_hidden_layers` gives the depth. Everything else is the host class's:
    layers, KV cache, forward, final norm and LM head.
    """

    def is_unused_checkpoint_weight(self, name: str) -> bool:
        """Whether a weight belongs to a skipped layer; vLLM skips files without used weights."""
        # Checkpoints in Mistral's own format lack the prefix `model.`.
        is_layer_weight = name.removeprefix("model.").startswith("layers.")
        return is_layer_weight and extract_layer_index(name) >= self.config.num_hidden_layers

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load like the host class, without the skipped layers, on which it would fail."""
        used = (item for item in weights if not self.is_unused_checkpoint_weight(item[0]))
        return super().load_weights(used)
