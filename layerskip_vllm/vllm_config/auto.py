"""What `self:auto` finds out before the engine starts: exits, K and a draft vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerskip_vllm.checkpoint.settings import SETTINGS_KEY, TOKEN_COUNTS_FILE
from layerskip_vllm.config import (
    DEFAULT_AUTO_TOKENS,
    DRAFT_VOCAB_SIZE,
    LayerSkipConfig,
    check_option_names,
)
from layerskip_vllm.vllm_config.exit_candidates import ExitCandidates, ModelShape, find_candidates
from layerskip_vllm.vllm_config.vocab_size import best_vocab_size, covered_by_rank

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.engine.arg_utils import EngineArgs


class Found(NamedTuple):
    """What `self:auto` starts with."""

    layerskip: LayerSkipConfig
    num_speculative_tokens: int
    """K if the user names none."""
    layers: str
    """Who drafts, for the log."""
    vocabulary: str
    """Among which tokens, for the log; empty: all."""


def find(
    engine_args: EngineArgs,
    model_config: ModelConfig,
    num_layers: int,
    num_speculative_tokens: int | None,
    options: Mapping[str, object],
) -> Found:
    """Read or choose what the user leaves open.

    Args:
        engine_args: The user's.
        model_config: The target's.
        num_layers: L.
        num_speculative_tokens: K, if the user names one.
        options: `additional_config["layerskip"]`.

    Raises:
        ValueError: An option or the checkpoint's `layerskip` is bad.
    """
    check_option_names(options)
    shape = ModelShape(num_layers, model_config.get_hidden_size(), model_config.get_vocab_size())
    found = find_candidates(options, getattr(model_config.hf_config, SETTINGS_KEY, None), shape)
    layerskip = LayerSkipConfig.from_options(found.first, num_layers, options, found.exit_layers)
    layerskip = replace(with_head_cost(layerskip, model_config), match_rates=found.match_rates)
    default = found.num_speculative_tokens or DEFAULT_AUTO_TOKENS
    if DRAFT_VOCAB_SIZE not in options:
        most = num_speculative_tokens or default
        layerskip = _with_draft_vocab(layerskip, found, engine_args, model_config, most)
    vocabulary = ""
    if (size := layerskip.draft_vocab_size) is not None:
        layerskip = with_head_cost(layerskip, model_config)
        num_bytes = size * shape.hidden_size * model_config.dtype.itemsize
        vocabulary = f" among {size} of {shape.vocab_size} ({num_bytes / 1e6:.1f} MB)"
    others = " or ".join(str(layer) for layer in found.exit_layers if layer != found.first)
    layers = f"the first {found.first} of {num_layers} layers, chosen by {found.source},"
    if others:
        layers += f" and later {others} where they are faster,"
    return Found(layerskip, default, f"self:auto: {layers}", vocabulary)


def with_head_cost(layerskip: LayerSkipConfig, model_config: ModelConfig) -> LayerSkipConfig:
    """Add what the LM head costs, and the draft's part of it."""
    vocab_size = model_config.get_vocab_size()
    size = layerskip.draft_vocab_size or vocab_size
    return replace(
        layerskip, head_layers=head_layers(model_config), draft_vocab_share=size / vocab_size
    )


def head_layers(model_config: ModelConfig) -> float:
    """Weights of the LM head, as a share of a decoder layer's."""
    hf_config = model_config.hf_text_config
    num_heads = hf_config.num_attention_heads
    num_kv_heads = getattr(hf_config, "num_key_value_heads", None) or num_heads
    of_attention = 2 * (num_heads + num_kv_heads) * model_config.get_head_size()
    of_layer = of_attention + 3 * hf_config.intermediate_size
    return model_config.get_vocab_size() / of_layer


def _with_draft_vocab(
    layerskip: LayerSkipConfig,
    found: ExitCandidates,
    engine_args: EngineArgs,
    model_config: ModelConfig,
    max_drafts: int,
) -> LayerSkipConfig:
    """Add a draft vocabulary where it pays and can be made.

    It cannot where an adapter may change the LM head, or its rows cannot be copied as they are.
    """
    whole = replace(layerskip, draft_vocab_counts=None)
    has_plain_head = (
        not engine_args.enable_lora
        and model_config.quantization is None
        and model_config.head_dtype == model_config.dtype
    )
    if not has_plain_head:
        return whole
    from layerskip_vllm.spec_decode.draft_vocabulary import draft_token_ids, read_counts

    vocab_size = model_config.get_vocab_size()
    file = Path(layerskip.draft_vocab_counts or Path(model_config.model) / TOKEN_COUNTS_FILE)
    counts = str(file) if layerskip.draft_vocab_counts or file.exists() else None

    @cache
    def shares() -> np.ndarray:
        """Of the text, by the number of most frequent tokens, less one: [vocab_size]."""
        by_frequency = np.sort(read_counts(file, vocab_size))[::-1]
        return np.cumsum(by_frequency) / max(by_frequency.sum(), 1)

    def covered(size: int) -> float:
        return covered_by_rank(size, vocab_size) if counts is None else float(shares()[size - 1])

    size = found.draft_vocab_size or best_vocab_size(layerskip, vocab_size, max_drafts, covered)
    if size is None:
        return whole
    chosen = replace(
        layerskip, draft_vocab_size=size, draft_vocab_counts=counts, may_drop_vocab=True
    )
    try:
        draft_token_ids(chosen, model_config)  # checks early; the worker builds it
    except ValueError:
        if found.draft_vocab_size is not None:
            raise
        return whole  # its tokenizer ranks no tokens
    return chosen
