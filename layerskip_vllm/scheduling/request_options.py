"""Options of a request: `SamplingParams.extra_args`, over HTTP `vllm_xargs`.

The keys are flat: `vllm_xargs` takes only strings, numbers and lists of them, and turns booleans
into 0 and 1. Imports no vLLM and no torch.
"""

from __future__ import annotations

from collections.abc import Mapping

LAYERSKIP_ARG = "layerskip"
"""False: decode this request plainly; others in the batch still draft."""

NUM_DRAFTS_ARG = "num_speculative_tokens"
"""Draft at most this many tokens per step for the request."""


def max_drafts_of(extra_args: Mapping[str, object] | None, num_speculative_tokens: int) -> int:
    """Return the most tokens to draft for a request in a step, in [0, num_speculative_tokens].

    Args:
        extra_args: The request's; unknown keys are ignored.
        num_speculative_tokens: K of the engine.

    Raises:
        ValueError: A value is out of range.
    """
    if not extra_args:
        return num_speculative_tokens
    layerskip = extra_args.get(LAYERSKIP_ARG, True)
    if not isinstance(layerskip, int) or layerskip not in (0, 1):
        raise ValueError(
            f"{LAYERSKIP_ARG}={layerskip!r} must be true or false; leave it out, and the engine "
            "drafts for this request"
        )
    num_drafts = extra_args.get(NUM_DRAFTS_ARG, num_speculative_tokens)
    is_whole = isinstance(num_drafts, int) and not isinstance(num_drafts, bool)
    if not is_whole or not 0 <= num_drafts <= num_speculative_tokens:  # type: ignore[operator]
        raise ValueError(
            f"{NUM_DRAFTS_ARG}={num_drafts!r} must be a whole number in "
            f"[0, {num_speculative_tokens}]; leave it out for {num_speculative_tokens}"
        )
    return num_drafts if layerskip else 0  # type: ignore[return-value]
