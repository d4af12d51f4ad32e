"""Which numbers of drafts have CUDA graphs on Model Runner V2; imports no vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.config import VllmConfig

MAX_CAPTURED_DRAFTS = 8
"""Where the policy chooses K, each K up to this has graphs, as has the engine's own. Another
runs without; the policy measures what each K takes, so it seldom chooses that one."""


def captured_draft_lengths(vllm_config: VllmConfig) -> list[int]:
    """The K that have graphs, longest first; K = 0, plain decoding, is not among them.

    Each exit has graphs of its own, so where there are several only every other K has: those in
    between would promise 1 or 2 % more.
    """
    config = vllm_config.speculative_config
    lengths = {vllm_config.num_speculative_tokens}
    lengths |= {k for *_, k in config.num_speculative_tokens_per_batch_size or [] if k > 0}
    if config.layerskip.adaptive:
        shorter = range(1, min(max(lengths), MAX_CAPTURED_DRAFTS + 1))
        has_exits = len(config.layerskip.exits) > 1
        lengths |= {1, 2, 4, 8}.intersection(shorter) if has_exits else set(shorter)
    return sorted(lengths, reverse=True)
