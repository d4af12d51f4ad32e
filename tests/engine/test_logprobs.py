"""Scores of output and prompt tokens beside drafts, in each of the engine's modes.

Greedy requests; test_seeded.py and test_seeded_scenarios.py have those with a temperature.
"""

import pytest

from layerskip_vllm.measure.engine import scheduler
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
from tests.engine.seeded import scores

SETTINGS = {"max_logprobs": -1, "max_num_batched_tokens": 48, "max_num_seqs": 8}


@pytest.fixture(
    scope="module",
    params=[
        "raw_logprobs",
        "raw_logits",
        "processed_logprobs",
        pytest.param("processed_logits", marks=pytest.mark.on_v2),
    ],
)
def engines(request, random_llama):
    """A plain and a self-speculating engine; about half of the drafts are right."""
    model = random_llama(num_layers=6, late_scale=0.3)
    settings = SETTINGS | {"logprobs_mode": request.param}
    plain = make_llm(model, **settings)
    # After `plain`: a new engine takes over vLLM's counters.
    llm = make_self_llm(model, 3, 3, **settings)
    yield plain, llm
    close(llm)
    close(plain)


def assert_near(actual: list, expected: list) -> None:
    """Compare scores by prompt, position and token; those of forbidden tokens are infinite."""
    for one, other in zip(actual, expected, strict=True):
        assert len(one) == len(other)
        for here, there in zip(one, other, strict=True):
            assert here == pytest.approx(there, abs=1e-3)


def test_scores_of_outputs(engines):
    """Of no token but the sampled one, of the best, and of the whole vocabulary (-1)."""
    prompts = as_prompts(random_prompts([5, 17, 40, 3, 9], seed=7))
    options = [
        {"logprobs": 0},
        {"logprobs": 3, "repetition_penalty": 1.3, "frequency_penalty": 0.5},
        {"logprobs": -1, "logit_bias": dict.fromkeys(range(0, 250, 3), -4.0)},
        {"logprobs": 5, "allowed_token_ids": [*range(20, 90)], "min_tokens": 12},
        {},
    ]
    params = [greedy(24, **one) for one in options]
    plain, llm = engines
    expected, before = scores(plain, prompts, params), counts(llm)
    actual = scores(llm, prompts, params)
    assert_near(actual, expected)
    assert all(len(at) == 320 for at in actual[2])
    assert_speculated(counts(llm).since(before))


def prompt_scores(llm, prompts, params) -> tuple[list[list[int]], list[list[dict[int, float]]]]:
    """Output token ids of each prompt, and the scores of its tokens; the first one has none."""
    outputs = llm.generate(prompts, params, use_tqdm=False)
    of_prompts = [
        [{token: entry.logprob for token, entry in (at or {}).items()} for at in positions]
        for positions in (output.prompt_logprobs or [] for output in outputs)
    ]
    return [list(output.outputs[0].token_ids) for output in outputs], of_prompts


def test_scores_of_prompts_in_chunks_beside_drafts(engines, monkeypatch):
    prompts = as_prompts(random_prompts([5, 12, 3, 110, 33, 80], seed=8))
    given = [None, None, 1, 2, 0, -1]
    params = [greedy(30, ignore_eos=True, prompt_logprobs=one) for one in given]
    plain, llm = engines
    num_beside, its_scheduler = 0, scheduler(llm)
    schedule = its_scheduler.schedule

    def counting_schedule(*args, **kwargs):
        nonlocal num_beside
        output = schedule(*args, **kwargs)
        scored = [
            request
            for name, request in its_scheduler.requests.items()
            if name in output.num_scheduled_tokens
            and request.sampling_params.prompt_logprobs is not None
            and request.num_computed_tokens < request.num_prompt_tokens
        ]
        num_beside += bool(scored and output.scheduled_spec_decode_tokens)
        return output

    expected, before = prompt_scores(plain, prompts, params), counts(llm)
    monkeypatch.setattr(its_scheduler, "schedule", counting_schedule)
    token_ids, of_prompts = prompt_scores(llm, prompts, params)
    assert token_ids == expected[0]
    assert_near(of_prompts, expected[1])
    assert [len(one) for one in of_prompts] == [
        0 if one is None else len(prompt["prompt_token_ids"])
        for one, prompt in zip(given, prompts, strict=True)
    ]
    assert num_beside >= 3
    assert_speculated(counts(llm).since(before))
