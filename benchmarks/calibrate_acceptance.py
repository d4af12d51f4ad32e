"""Calibrate acceptance: find the scale of layers [E, L) that gives the target agreement."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

NGRAM = 4
"""Length of the n-grams whose repetition shows a loop."""


@dataclass(frozen=True)
class Agreement:
    """How often exit E predicts the next token of the whole model's greedy text.

    Early layers only see accepted tokens, so this is the acceptance per token for any K.

    Attributes:
        mean: Over all positions, in [0, 1].
        by_prompt: One mean per prompt.
        new_ngrams: Share of 4-grams that are new in their text; 1 if nothing loops.
    """

    mean: float
    by_prompt: list[float]
    new_ngrams: float


@dataclass(frozen=True)
class Calibration:
    """Result of the bisection.

    Attributes:
        scale: Factor on the output projections of layers [E, L).
        agreement: Agreement at that scale.
        tries: (scale, mean agreement) in the order tried.
    """

    scale: float
    agreement: Agreement
    tries: list[tuple[float, float]]


def calibrate_acceptance(
    measure: Callable[[float], Agreement],
    target: float,
    tolerance: float,
    low: float = 0.0,
    high: float = 1.0,
    max_tries: int = 12,
) -> Calibration:
    """Bisect for the scale that gives the target agreement, which must fall as the scale rises.

    Args:
        measure: Returns the agreement at a scale.
        target: Target mean agreement.
        tolerance: Accepted distance from the target.
        low: A scale with agreement above the target.
        high: A scale with agreement below it.
        max_tries: Scales to try before giving up.

    Raises:
        ValueError: No scale tried came within the tolerance.
    """
    tries = []
    for _ in range(max_tries):
        scale = (low + high) / 2
        agreement = measure(scale)
        tries.append((scale, agreement.mean))
        if abs(agreement.mean - target) <= tolerance:
            return Calibration(scale, agreement, tries)
        if agreement.mean > target:
            low = scale
        else:
            high = scale
    raise ValueError(f"no scale gives {target} +- {tolerance}: tried {tries}")


def measure_agreement(
    model: LlamaForCausalLM,
    exit_layer: int,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
) -> Agreement:
    """Generate greedily, and compare each token with exit E's draft of it.

    Args:
        model: With its layers [E, L) scaled.
        exit_layer: E.
        prompts: Token ids, all of one length.
        max_tokens: Tokens to generate per prompt.
    """
    (agreement,) = measure_agreements(model, [exit_layer], prompts, max_tokens)
    return agreement


def measure_agreements(
    model: LlamaForCausalLM,
    exit_layers: Sequence[int],
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
) -> list[Agreement]:
    """Generate greedily, and compare each token with the draft of each exit; one per exit.

    Args:
        model: The model.
        exit_layers: Each E.
        prompts: Token ids, all of one length.
        max_tokens: Tokens to generate per prompt.
    """
    import torch

    (prompt_len,) = {len(prompt) for prompt in prompts}
    prompt_ids = torch.tensor([list(prompt) for prompt in prompts], device=model.device)
    by_exit: list[list[float]] = [[] for _ in exit_layers]
    with torch.inference_mode():
        token_ids = model.generate(
            prompt_ids,
            attention_mask=torch.ones_like(prompt_ids),
            do_sample=False,
            max_new_tokens=max_tokens,
            pad_token_id=0,
        )
        for text in token_ids:  # one by one: with a 128k vocabulary, all logits would not fit
            states = model.model(text[None, :-1], output_hidden_states=True).hidden_states
            for agrees, exit_layer in zip(by_exit, exit_layers, strict=True):
                exit_states = model.model.norm(states[exit_layer][0, prompt_len:])
                drafted = model.lm_head(exit_states).argmax(dim=-1)
                agrees.append((drafted == text[prompt_len + 1 :]).float().mean().item())
    is_new = statistics.fmean(new_ngrams(text[prompt_len:].tolist()) for text in token_ids)
    return [Agreement(statistics.fmean(agrees), agrees, is_new) for agrees in by_exit]


def new_ngrams(token_ids: Sequence[int]) -> float:
    """Share of a text's 4-grams that do not repeat an earlier one."""
    ngrams = [tuple(token_ids[i : i + NGRAM]) for i in range(len(token_ids) - NGRAM + 1)]
    return len(set(ngrams)) / len(ngrams)
