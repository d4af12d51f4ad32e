"""How many tokens a draft vocabulary should hold, by the layer-count model; imports no vLLM."""

from __future__ import annotations

import math
from collections.abc import Callable

from layerskip_vllm.checkpoint.ideal import ideal_speedup
from layerskip_vllm.config import LayerSkipConfig
from layerskip_vllm.scheduling.outcomes import PRIOR_MATCH_RATE

PARTS = (2, 4, 8, 16)
"""A half of the vocabulary, a quarter, and so on."""

MIN_GAIN = 1.05
"""A draft vocabulary takes memory and must promise this much more than the whole one."""

ZIPF_SHIFT = 2.7
"""The r-th most frequent token occurs about 1 / (r + 2.7) as often as all (Mandelbrot 1953).

Of English prose, 113k tokens of SmolLM2's tokenizer, ranked by its merges, a half of the vocabulary
covers 0.95, a quarter 0.87, an eighth 0.78, a sixteenth 0.69; this law says 0.93, 0.86, 0.79, 0.72.
"""


def covered_by_rank(size: int, vocab_size: int) -> float:
    """The share of a text that the most frequent tokens are, where only their order is known."""
    return math.log1p(size / ZIPF_SHIFT) / math.log1p(vocab_size / ZIPF_SHIFT)


def best_vocab_size(
    layerskip: LayerSkipConfig,
    vocab_size: int,
    max_drafts: int,
    covered: Callable[[int], float],
) -> int | None:
    """The draft vocabulary with the most tokens per cost at the first exit.

    Args:
        layerskip: Its exits, and what the LM head costs.
        vocab_size: Tokens of the target.
        max_drafts: K.
        covered: Number of most frequent tokens -> the share of the text that they are.

    Returns:
        None for the whole vocabulary: where the LM head does not outweigh the layers that draft,
        or none of the PARTS promises enough.
    """
    if layerskip.head_layers <= layerskip.exit_layer:
        return None

    def promise(size: int) -> float:
        draft = layerskip.exit_layer + layerskip.head_layers * size / vocab_size
        full = layerskip.num_layers + layerskip.head_layers
        return ideal_speedup(PRIOR_MATCH_RATE * covered(size), draft, full, max_drafts)

    sizes = [vocab_size // part for part in PARTS if vocab_size >= part]
    best = max(sizes, key=promise, default=vocab_size)
    return best if promise(best) >= MIN_GAIN * promise(vocab_size) else None
