"""Limits on the drafts of a request."""

import pytest
from vllm import SamplingParams

from layerskip_vllm.scheduling.limits import max_drafts, max_num_tokens


def test_a_request_may_ask_for_fewer_drafts_or_none():
    assert max_drafts(SamplingParams(), 4, 1) == 4
    assert max_drafts(SamplingParams(extra_args={"num_speculative_tokens": 2}), 4, 1) == 2
    assert max_drafts(SamplingParams(extra_args={"layerskip": False}), 4, 1) == 0


def test_a_thinking_budget_that_ends_in_several_tokens_allows_no_drafts():
    params = SamplingParams(thinking_token_budget=5)
    assert max_drafts(params, 4, num_thinking_end_tokens=2) == 0
    assert max_drafts(params, 4, num_thinking_end_tokens=1) == 4
    assert max_drafts(SamplingParams(), 4, num_thinking_end_tokens=2) == 4


@pytest.mark.parametrize(("max_tokens", "expected"), [(9, 19), (None, 50), (90, 50)])
def test_drafts_end_with_the_first_limit(max_tokens, expected):
    assert max_num_tokens(SamplingParams(max_tokens=max_tokens), 10, max_model_len=50) == expected
