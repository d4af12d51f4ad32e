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


@pytest.mark.parametrize(
    ("params", "num_output_tokens", "expected"),
    [
        ({"max_tokens": 9}, 3, 19),
        ({"max_tokens": None}, 3, 50),
        ({"max_tokens": 90}, 3, 50),
        ({"max_tokens": 9, "min_tokens": 5}, 4, 15),
        ({"max_tokens": 9, "min_tokens": 5}, 5, 19),
    ],
)
def test_drafts_end_with_the_first_limit(params, num_output_tokens, expected):
    limit = max_num_tokens(SamplingParams(**params), 10, num_output_tokens, max_model_len=50)
    assert limit == expected
