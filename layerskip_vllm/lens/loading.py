"""Loads the model and tokenizes the prompts of a lens run."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from layerskip_vllm.lens.survey import Subject

logger = logging.getLogger(__name__)


def load(name: str, *, dtype: str, device: str, label: str) -> Subject:
    """Load a checkpoint and its tokenizer, from a directory or the hub.

    Args:
        name: Argument of `AutoModelForCausalLM.from_pretrained`.
        dtype: Name of a torch dtype, or `auto` for the checkpoint's.
        device: Name of a torch device.
        label: The model's name in figures.

    Raises:
        ValueError: The model or device does not exist, or the model is not a causal LM.
    """
    target = _device(device)
    disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(target)
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (ValueError, OSError) as error:
        raise cannot_load(name, error) from error
    return Subject(model.eval(), tokenizer, name, label, _checkpoint_dtype(config, model.dtype))


def cannot_load(name: str, error: Exception) -> ValueError:
    """Shorten transformers' message, which runs to a page; its first line names the fault."""
    reason = str(error).strip().partition("\n")[0]
    return ValueError(f"MODEL={name!r} cannot be loaded: {reason[:300]}")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device={name!r} cannot be used: {reason}") from error
    return device


def _checkpoint_dtype(config: PretrainedConfig, loaded: torch.dtype) -> torch.dtype:
    """Return the dtype in the checkpoint's config, else that of the loaded model."""
    named = config.dtype
    return getattr(torch, named) if isinstance(named, str) else named or loaded


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    num_positions: int | None,
    max_length: int,
    max_tokens: int,
) -> list[list[int]]:
    """Return each text's token ids, with the tokenizer's special tokens, truncated if too long.

    Args:
        tokenizer: The model's.
        texts: Prompts.
        num_positions: Most tokens of prompt and output together; None: no limit.
        max_length: Most tokens of a prompt; later ones are dropped.
        max_tokens: Tokens to generate after each.

    Raises:
        ValueError: A text has no tokens, or the model has too few positions.
    """
    limit = max_length if num_positions is None else min(max_length, num_positions - max_tokens)
    if limit < 1:
        raise ValueError(
            f"--max-tokens={max_tokens} must be less than the model's {num_positions} positions, "
            "which also hold the prompt"
        )
    prompts = [tokenizer(text)["input_ids"] for text in texts]
    for text, prompt in zip(texts, prompts, strict=True):
        if not prompt:
            raise ValueError(f"prompt {text[:40]!r} has no tokens")
    num_cut = sum(len(prompt) > limit for prompt in prompts)
    if num_cut:
        logger.warning(
            "%d of %d prompts: only the first %d tokens are used (--max-length=%d%s)",
            num_cut,
            len(prompts),
            limit,
            max_length,
            "" if limit == max_length else f", {num_positions} positions in the model",
        )
    return [prompt[:limit] for prompt in prompts]
