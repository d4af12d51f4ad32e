"""How a model turns the last layer's states into logits, and its logits into a loss.

LayerSkip sends early states the same way: norm, LM head, and at most a factor. Whatever else a
model does would be left out of every exit's loss in silence, so it is refused by name.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

NUM_TOKENS = 8

LARGE = 50.0
"""Standard deviation of the logits that are tried: among small ones a soft cap is a factor."""

TOLERANCE = 1e-2
"""Relative; wide enough for models in bfloat16."""

ROUNDING = 1e-3
"""A factor so near to 1 is 1, in bfloat16 too."""


def logit_scale(model: PreTrainedModel) -> float:
    """Measure s in `logits = s * lm_head(norm(states))`: 1 for Llama, 1 / 8 for some Granite.

    Args:
        model: Built like Llama, its forward not yet replaced. It runs once, on a few tokens.

    Raises:
        ValueError: The model's logits or its loss are more than that, such as Gemma 2's soft cap or
            the router's loss of a mixture of experts.
    """
    name = type(model).__name__
    if hasattr(model.config.get_text_config(), "output_router_logits"):
        raise ValueError(
            f"{name} is a mixture of experts, whose router has a loss of its own; the early exit "
            "loss would leave it out. Train a dense model"
        )
    if model.lm_head.weight.is_meta:  # as on ranks to which FSDP sends the weights later
        model = _one_layer(model)
    was_training = model.training
    model.eval()
    try:
        passed = _pass_large_logits(model)
    finally:
        model.train(was_training)
    factors = [_factor(*pair) for pair in passed.pairs]
    expected = cross_entropy(passed.logits[0, :-1], passed.labels[0, 1:])
    if None in factors or not torch.allclose(passed.loss, expected, rtol=1e-4):
        raise ValueError(
            f"{name} computes more than a factor times norm and LM head, such as a soft cap of its "
            "logits or another term of its loss; the early exit loss would leave it out"
        )
    return math.prod(factor for factor in factors if factor is not None)


class _Passed(NamedTuple):
    pairs: list[tuple[torch.Tensor, torch.Tensor]]
    """Normed states and the LM head's input; the tried logits and the model's."""
    logits: torch.Tensor  # [1, NUM_TOKENS, vocab_size], float32
    labels: torch.Tensor  # [1, NUM_TOKENS], int64
    loss: torch.Tensor  # scalar, float32


@torch.no_grad()
def _pass_large_logits(model: PreTrainedModel) -> _Passed:
    """Run the model with large random logits in the place of its LM head's."""
    seen: dict[str, torch.Tensor] = {}

    def replace(_head: object, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        seen["input"] = inputs[0]
        seen["tried"] = LARGE * torch.randn(output.shape, generator=generator)
        return seen["tried"].to(output)

    def keep(_norm: object, _inputs: object, output: torch.Tensor) -> None:
        seen["normed"] = output

    weight = model.lm_head.weight
    input_ids = torch.arange(NUM_TOKENS, device=weight.device)[None] % len(weight)
    hooks = [
        model.lm_head.register_forward_hook(replace),
        model.model.norm.register_forward_hook(keep),
    ]
    try:
        output = model(input_ids=input_ids, labels=input_ids, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = [(seen["normed"], seen["input"]), (seen["tried"], output.logits)]
    return _Passed(pairs, output.logits.float(), input_ids, output.loss.float())


def _one_layer(model: PreTrainedModel) -> PreTrainedModel:
    config = copy.deepcopy(model.config)
    config.num_hidden_layers, config.vocab_size, config.pad_token_id = 1, NUM_TOKENS, None
    with torch.device("cpu"):
        return type(model)(config)


def _factor(before: torch.Tensor, after: torch.Tensor) -> float | None:
    """The factor from one tensor to another of the same shape; None if there is none."""
    before, after = before.float().cpu(), after.float().cpu()
    factor = float((after * before).sum() / (before * before).sum())
    scaled = factor * before
    is_factor = torch.allclose(after, scaled, TOLERANCE, TOLERANCE * float(scaled.abs().mean()))
    if not is_factor:
        return None
    return 1.0 if abs(factor - 1) < ROUNDING else factor
