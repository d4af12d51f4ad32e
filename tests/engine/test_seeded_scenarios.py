"""With a seed, the text is plain vLLM's for each K and under every load.

Each engine here is closed before the next one starts; see test_seeded.py for the options.
"""

import json
import shutil

import pytest

from tests import runner_v2
from tests.engine.engines import (
    as_prompts,
    assert_speculated,
    close,
    counts,
    generate,
    generate_plainly,
    make_llm,
    make_self_llm,
    num_preemptions,
    random_prompts,
)
from tests.engine.seeded import requests, scores, seeded

EXIT_LAYER = 3
AUTO = pytest.param([1, EXIT_LAYER, 4], id="self:auto")


@pytest.fixture(scope="module")
def model(random_llama):
    """Its drafts are right about half of the time, even at temperatures above 0."""
    return random_llama(num_layers=6, late_scale=0.15, initializer_range=0.2)


def assert_equal(
    model, prompts, params, num_speculative_tokens=4, exit_layer=EXIT_LAYER, **settings
):
    """Plain vLLM, with memory for all and whole prompts, gives the reference."""
    expected = generate_plainly(model, prompts, params)
    llm = make_self_llm(model, exit_layer, num_speculative_tokens, **settings)
    before, preempted_before = counts(llm), num_preemptions(llm)
    outputs = generate(llm, prompts, params)
    counted, preempted = counts(llm).since(before), num_preemptions(llm) - preempted_before
    close(llm)
    assert outputs == expected
    assert_speculated(counted)
    return preempted


@pytest.mark.parametrize("num_speculative_tokens", [1, 2, 3, 5, 6])
def test_every_draft_length(model, num_speculative_tokens):
    assert_equal(model, *requests(16), num_speculative_tokens)


def test_without_drafts(model):
    """K = 0 in every step: the row after the last token is the only one."""
    prompts, params = requests(16)
    for one in params:
        one.extra_args = {"num_speculative_tokens": 0}
    expected = generate_plainly(model, *requests(16))
    llm = make_self_llm(model, EXIT_LAYER, 4)
    outputs = generate(llm, prompts, params)
    close(llm)
    assert outputs == expected


def test_drafts_of_a_length_that_follows_the_clock(model):
    prompts, params = requests(16)
    expected = generate_plainly(model, prompts, params)
    llm = make_self_llm(model, EXIT_LAYER, 6, {"adaptive": True})
    before = counts(llm)
    outputs = [generate(llm, prompts, params) for _ in range(4)]
    counted = counts(llm).since(before)
    close(llm)
    assert outputs == [expected] * 4
    assert counted.num_drafted > 0


@pytest.mark.parametrize("exit_layer", [pytest.param(EXIT_LAYER, marks=pytest.mark.on_v2), AUTO])
def test_prompts_in_chunks_beside_decodes(model, exit_layer):
    """vLLM 0.32 itself ends on a CPU: it takes back a draw by the generator's offset."""
    prompts = as_prompts(random_prompts([70, 5, 33, 90, 12, 60, 3, 41], seed=2))
    params = [seeded(300 + i) for i in range(len(prompts))]
    chunks = {"max_num_batched_tokens": 48, "max_num_seqs": 8}
    assert_equal(model, prompts, params, exit_layer=exit_layer, **chunks)


def test_preempted_requests_go_on_with_their_random_state(model):
    prompts = as_prompts(random_prompts([40, 50, 30, 45, 38, 42], seed=5))
    params = [seeded(400 + i, num_options=1, max_tokens=110) for i in range(len(prompts))]
    for one in params:
        one.max_tokens = 110
    assert assert_equal(model, prompts, params, num_gpu_blocks_override=12) > 0


@pytest.mark.parametrize("exit_layer", [EXIT_LAYER, AUTO])
def test_prefix_hits(model, exit_layer):
    (prefix,) = random_prompts([96], seed=3)
    tails = random_prompts([1, 7, 32, 33, 40, 64], seed=4)
    prompts = as_prompts([prefix + tail for tail in tails])
    params = [seeded(500 + i) for i in range(len(prompts))]
    expected = generate_plainly(model, prompts, params)
    llm = make_self_llm(model, exit_layer, 4)
    assert generate(llm, prompts, params) == expected
    before = counts(llm)
    second = llm.generate(prompts, params, use_tqdm=False)
    counted = counts(llm).since(before)
    close(llm)
    assert [list(output.outputs[0].token_ids) for output in second] == expected
    assert min(output.num_cached_tokens for output in second) > 0
    assert_speculated(counted)


def test_options_that_the_checkpoint_sets(model, tmp_path):
    """vLLM takes them for every request that does not say otherwise."""
    folder = shutil.copytree(model, tmp_path / "model")
    options = {"do_sample": True, "temperature": 1.2, "min_p": 0.1, "top_p": 0.9}
    if runner_v2.is_chosen():
        del options["top_p"]  # see NOT_ON_V2
    (folder / "generation_config.json").write_text(json.dumps(options))
    prompts, outputs = as_prompts(random_prompts([5, 17, 40], seed=7)), []
    for open_llm in (make_llm, lambda path: make_self_llm(path, EXIT_LAYER, 4)):
        llm = open_llm(str(folder))
        params = llm.get_default_sampling_params()
        assert (params.temperature, params.min_p) == (1.2, 0.1)
        params.seed, params.max_tokens = 3, 40
        outputs.append(generate(llm, prompts, params))
        close(llm)
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    "mode", ["raw_logprobs", "raw_logits", "processed_logprobs", "processed_logits"]
)
@pytest.mark.parametrize("draft_sample_method", ["greedy", "probabilistic"])
def test_every_logprobs_mode(model, mode, draft_sample_method):
    """With drawn drafts the text may differ; a token has the same score where it does not."""
    prompts = as_prompts(random_prompts([5, 17, 40, 3], seed=7))
    params = [seeded(600 + i, num_options=1, logprobs=3) for i in range(len(prompts))]
    plain = make_llm(model, logprobs_mode=mode)
    expected = scores(plain, prompts, params)
    close(plain)
    config = {"draft_sample_method": draft_sample_method}
    llm = make_self_llm(model, EXIT_LAYER, 4, logprobs_mode=mode, speculative_config=config)
    actual = scores(llm, prompts, params)
    close(llm)
    if draft_sample_method == "probabilistic":
        actual, expected = ([one[:1] for one in answer] for answer in (actual, expected))
    for one, other in zip(actual, expected, strict=True):
        assert len(one) == len(other)
        for here, there in zip(one, other, strict=True):
            assert here == pytest.approx(there, abs=1e-3)
