"""With a seed, the text is plain vLLM's at any temperature, with any sampling option.

In float32, token for token, whatever is drafted and whoever else is in the batch.
"""

import random

import pytest
from vllm import SamplingParams

from tests.engine.engines import (
    as_prompts,
    assert_speculated,
    close,
    counts,
    greedy,
    make_llm,
    make_self_llm,
    random_prompts,
)
from tests.engine.seeded import OPTIONS, answers, option_names, requests, scores

K = 4
TEMPERATURES = [0.3, 0.7, 1.0, 1.5]


@pytest.fixture(scope="module")
def model(random_llama):
    """Its drafts are right about half of the time, even at temperatures above 0."""
    return random_llama(num_layers=6, late_scale=0.15, initializer_range=0.2)


@pytest.fixture(scope="module")
def plain(model):
    llm = make_llm(model, max_num_seqs=16, max_logprobs=-1)
    yield llm
    close(llm)


@pytest.fixture(scope="module")
def llm(model, plain):
    # After `plain`: a new engine takes over vLLM's counters.
    llm = make_self_llm(model, 3, K, max_num_seqs=16, max_logprobs=-1)
    yield llm
    close(llm)


def with_option(name: str, **overrides) -> tuple[list[dict], list[SamplingParams]]:
    """One request at each temperature, each with values of its own."""
    rng = random.Random(name)
    params = [
        SamplingParams(
            **{"temperature": temperature, "seed": seed, "max_tokens": 40, "ignore_eos": True}
            | OPTIONS[name](rng, 40)
            | overrides
        )
        for seed, temperature in enumerate(TEMPERATURES)
    ]
    return as_prompts(random_prompts([5, 17, 40, 3], seed=7)), params


@pytest.mark.parametrize("name", option_names())
def test_an_option_acts_as_without_drafts(plain, llm, name):
    prompts, params = with_option(name)
    expected, before = answers(plain, prompts, params), counts(llm)
    assert answers(llm, prompts, params) == expected
    assert_speculated(counts(llm).since(before))


@pytest.mark.parametrize("num_requests", [1, 2, pytest.param(5, marks=pytest.mark.on_v2), 16])
@pytest.mark.parametrize("first_seed", [0, 1000])
def test_random_options_in_batches(plain, llm, num_requests, first_seed):
    prompts, params = requests(num_requests, first_seed)
    expected = answers(plain, prompts, params)
    assert answers(llm, prompts, params) == expected


def test_48_requests_join_and_leave(plain, llm):
    prompts, params = requests(48, first_seed=100)
    expected, before = answers(plain, prompts, params), counts(llm)
    assert answers(llm, prompts, params) == expected
    assert_speculated(counts(llm).since(before))


def test_company_does_not_matter(plain, llm):
    """Greedy requests, ones without a seed, and ones that may not draft."""
    prompts, params = requests(6, first_seed=200)
    expected = answers(plain, prompts, params)
    plain_greedy = answers(plain, prompts, greedy(30))
    unseeded = SamplingParams(temperature=1, max_tokens=30, ignore_eos=True)
    undrafted = [one.clone() for one in params]
    for one in undrafted:
        one.extra_args = {"layerskip": False}
    mixed = [
        answer
        for group in zip(params, [greedy(30)] * 6, [unseeded] * 6, undrafted, strict=True)
        for answer in group
    ]
    actual = answers(llm, [prompt for prompt in prompts for _ in range(4)], mixed)
    assert actual[0::4] == actual[3::4] == expected
    assert actual[1::4] == plain_greedy


@pytest.mark.parametrize(
    "of_requests",
    [
        pytest.param([{"logprobs": 3}, {"logprobs": 0}, {}, {"logprobs": -1}], id="top"),
        pytest.param([{"logprob_token_ids": [7, 70, 170]}], id="tokens", marks=pytest.mark.on_v2),
        pytest.param([{"logprob_token_ids": [7]}, {"logprob_token_ids": [1, 2, 3]}, {}], id="both"),
    ],
)
def test_logprobs_are_those_without_drafts(plain, llm, of_requests):
    prompts, params = with_option("nothing")
    for i, one in enumerate(params):
        for name, value in of_requests[i % len(of_requests)].items():
            setattr(one, name, value)
    expected, before = scores(plain, prompts, params), counts(llm)
    actual = scores(llm, prompts, params)
    assert_speculated(counts(llm).since(before))
    for one, other in zip(actual, expected, strict=True):
        assert len(one) == len(other)
        for here, there in zip(one, other, strict=True):
            assert here == pytest.approx(there, abs=1e-4)


def test_logprobs_of_two_kinds_in_a_batch(plain, llm):
    """The engine lives; in such a batch V1 of vLLM gives all requests the columns of one."""
    prompts, params = with_option("nothing")
    params[0].logprob_token_ids, params[1].logprobs = [7, 70, 170], 5
    expected = answers(plain, prompts, params)
    assert answers(llm, prompts, params) == expected
