"""How many tokens may be drafted for one request; imports no vLLM at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerskip_vllm.scheduling.request_options import max_drafts_of

if TYPE_CHECKING:
    from vllm import SamplingParams


def max_drafts(
    params: SamplingParams, num_speculative_tokens: int, num_thinking_end_tokens: int
) -> int:
    """Most drafts of a request in any step, in [0, num_speculative_tokens].

    vLLM counts the tokens that end a thought as if all drafts of them were accepted, so a request
    with a thinking budget that ends in several tokens is not drafted for.
    """
    if params.thinking_token_budget is not None and num_thinking_end_tokens > 1:
        return 0
    return max_drafts_of(params.extra_args, num_speculative_tokens)


def max_num_tokens(params: SamplingParams, num_prompt_tokens: int, max_model_len: int) -> int:
    """Most tokens, prompt included, up to which a request may be drafted.

    No draft follows `max_tokens` or `max_model_len`.

    Args:
        params: The request's.
        num_prompt_tokens: Of the request.
        max_model_len: Of the engine.
    """
    limit = max_model_len - num_prompt_tokens
    if params.max_tokens is not None:
        limit = min(limit, params.max_tokens)
    return num_prompt_tokens + limit
