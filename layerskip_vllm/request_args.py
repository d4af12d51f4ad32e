"""What one request may say of its drafts; imports neither vLLM nor torch.

It says so in vLLM's `SamplingParams.extra_args`, over HTTP in `vllm_xargs`. The keys are flat: the
latter takes strings, numbers and lists of them, and makes 0 and 1 of booleans.
"""

from __future__ import annotations

from collections.abc import Mapping

LAYERSKIP_ARG = "layerskip"
"""False: the request is decoded plainly, beside others that are not."""

NUM_DRAFTS_ARG = "num_speculative_tokens"
"""Most tokens drafted for the request in a step."""


def max_drafts_of(extra_args: Mapping[str, object] | None, num_speculative_tokens: int) -> int:
    """Return the most tokens to draft for a request in a step, in [0, num_speculative_tokens].

    Args:
        extra_args: The request's. Keys that are not ours are others' affair.
        num_speculative_tokens: K of the engine.

    Raises:
        ValueError: A value of ours is out of range.
    """
    if not extra_args:
        return num_speculative_tokens
    layerskip = extra_args.get(LAYERSKIP_ARG, True)
    if not isinstance(layerskip, int) or layerskip not in (0, 1):
        raise ValueError(
            f"{LAYERSKIP_ARG}={layerskip!r} must be true or false; leave it out to let the engine "
            "draft for this request"
        )
    num_drafts = extra_args.get(NUM_DRAFTS_ARG, num_speculative_tokens)
    is_whole = isinstance(num_drafts, int) and not isinstance(num_drafts, bool)
    if not is_whole or not 0 <= num_drafts <= num_speculative_tokens:  # type: ignore[operator]
        raise ValueError(
            f"{NUM_DRAFTS_ARG}={num_drafts!r} must be a whole number in "
            f"[0, {num_speculative_tokens}]; leave it out for {num_speculative_tokens}"
        )
    return num_drafts if layerskip else 0  # type: ignore[return-value]
