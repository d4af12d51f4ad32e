"""A model's exits: exit E is the first E decoder layers, then the shared norm and LM head."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

SELF_CHECK_TOLERANCE = 0.05
"""Relative to the largest logit. Equal computations of different shapes differ by under 0.02 in
bfloat16."""


def num_decoder_layers(model: PreTrainedModel) -> int:
    """Return L of a model built like Llama.

    Raises:
        ValueError: Names the class and the missing parts.
    """
    body = getattr(model, "model", None)
    parts = {
        "model.layers": getattr(body, "layers", None),
        "model.norm": getattr(body, "norm", None),
        "lm_head": getattr(model, "lm_head", None),
    }
    missing = [name for name, part in parts.items() if not isinstance(part, nn.Module)]
    if missing:
        raise ValueError(
            f"{type(model).__name__} has no {', '.join(missing)}: the lens needs a decoder built "
            "like Llama (model.layers, model.norm, lm_head)"
        )
    return len(model.model.layers)


def exit_states(
    model: PreTrainedModel,
    token_ids: torch.Tensor,  # [num_tokens], int64
) -> list[torch.Tensor]:
    """Run the full model; return each exit's state after the shared norm.

    Returns:
        num_layers tensors [num_tokens, hidden_size], exit 1 first. `model.lm_head` turns them into
        logits.

    Raises:
        ValueError: The model's logits differ from those of norm and LM head alone.
    """
    output = model(token_ids[None], output_hidden_states=True, use_cache=False, logits_to_keep=1)
    # transformers documents that a decoder's last entry has already passed the norm.
    *states, last = [state[0] for state in output.hidden_states[1:]]
    own_logits, logits = output.logits[0, -1].float(), model.lm_head(last[-1]).float()
    if (own_logits - logits).abs().max() > SELF_CHECK_TOLERANCE * own_logits.abs().max():
        raise ValueError(
            f"{type(model).__name__} does more than norm and LM head after its last layer "
            "(scaled or capped logits): vLLM would draft with other exits than the lens shows"
        )
    return [*(model.model.norm(state) for state in states), last]


def cut(model: PreTrainedModel, exit_layer: int) -> PreTrainedModel:
    """Return the model cut at exit E; it shares its parameters with the full model.

    Args:
        model: The full model.
        exit_layer: E; the full depth gives an equivalent model.
    """
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = exit_layer
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:exit_layer]
    with torch.device("meta"):
        short = type(model)(config)
    for name, child in model.model.named_children():
        setattr(short.model, name, child[:exit_layer] if name == "layers" else child)
    short.lm_head = model.lm_head
    return short.eval()


def num_parameters(model: PreTrainedModel, exit_layer: int) -> int:
    """Count the parameters of the model cut at exit E; a tied head counts once."""
    later_layers = model.model.layers[exit_layer:]
    return _count(model) - sum(_count(layer) for layer in later_layers)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
