"""Greedy float32 output with and without self-speculation is the same, token for token."""

import itertools

import pytest

from tests.engine.engines import (
    as_prompts,
    assert_speculated,
    close,
    counts,
    generate,
    generate_plainly,
    greedy,
    make_llm,
    make_self_llm,
    random_prompts,
)
from tests.engine.scripted_choices import ScriptedChoices
from tests.options import FIXED

NUM_LAYERS = 6
LENGTHS = [5, 17, 40, 90, 3, 20]
EXITS = [pytest.param(3, id="self:3"), pytest.param([1, 3, 4], id="self:auto")]


@pytest.fixture(scope="module")
def mixed_model(random_llama):
    """A model whose drafts are accepted about half of the time."""
    return random_llama(num_layers=NUM_LAYERS, late_scale=0.3)


@pytest.fixture(scope="module")
def plain_outputs(mixed_model):
    return generate_plainly(mixed_model, as_prompts(random_prompts(LENGTHS)), greedy(60))


@pytest.mark.parametrize(
    ("exit_layer", "num_speculative_tokens"),
    itertools.product([1, NUM_LAYERS - 1], range(1, 9)),
)
def test_every_exit_layer_and_draft_length(
    mixed_model, plain_outputs, exit_layer, num_speculative_tokens
):
    llm = make_self_llm(mixed_model, exit_layer, num_speculative_tokens)
    before = counts(llm)
    outputs = generate(llm, as_prompts(random_prompts(LENGTHS)), greedy(60))
    counted = counts(llm).since(before)
    close(llm)
    assert outputs == plain_outputs
    assert_speculated(counted)


@pytest.mark.on_v2
@pytest.mark.parametrize("exit_layer", EXITS)
def test_short_prompts_one_after_another(mixed_model, exit_layer):
    """A prompt no longer than the exit states that the request before has left in its place."""
    prompts = as_prompts(random_prompts([3, 3, 2, 4]))
    alone = {"max_num_seqs": 1, "enable_prefix_caching": False}
    plain = generate_plainly(mixed_model, prompts, greedy(12), **alone)
    llm = make_self_llm(mixed_model, exit_layer, 3, **alone)
    before = counts(llm)
    outputs = generate(llm, prompts, greedy(12))
    counted = counts(llm).since(before)
    close(llm)
    assert outputs == plain
    assert_speculated(counted)


def test_without_the_exit_query_cache_nothing_resumes(mixed_model, plain_outputs):
    llm = make_self_llm(mixed_model, 3, 3, {"exit_query_cache": False})
    before = counts(llm)
    outputs = generate(llm, as_prompts(random_prompts(LENGTHS)), greedy(60))
    counted = counts(llm).since(before)
    close(llm)
    assert outputs == plain_outputs
    assert counted.num_accepted > 0
    assert counted.num_resumed == 0


@pytest.mark.parametrize("exit_layer", EXITS)
def test_local_argmax_drafts_the_same_tokens(mixed_model, plain_outputs, exit_layer):
    prompts = as_prompts(random_prompts(LENGTHS))
    counted = []
    for use_local_argmax_reduction in (False, True):
        llm = make_self_llm(
            mixed_model,
            exit_layer,
            3,
            speculative_config={"use_local_argmax_reduction": use_local_argmax_reduction},
        )
        before = counts(llm)
        assert generate(llm, prompts, greedy(60)) == plain_outputs
        counted.append(counts(llm).since(before))
        close(llm)
    assert counted[0] == counted[1]
    assert_speculated(counted[0])


def test_both_segments_and_the_whole_model_compile_once(random_llama, monkeypatch, tmp_path):
    """`vllm serve` compiles by default: the model and both its parts, for any number of tokens."""
    from vllm.compilation.counter import compilation_counter

    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    model = random_llama(num_layers=3, late_scale=0.3)
    prompts = as_prompts(random_prompts([5, 33, 9]))
    params = [greedy(n, ignore_eos=True) for n in (40, 8, 20)]
    expected = generate_plainly(model, prompts, params)
    with compilation_counter.expect(num_aot_compiles=3):
        llm = make_self_llm(model, 2, 3, enforce_eager=False)
    before = counts(llm)
    # No step compiles anything, whatever its shape.
    with compilation_counter.expect(num_aot_compiles=0, num_inductor_compiles=0):
        assert generate(llm, prompts, params) == expected
    assert_speculated(counts(llm).since(before))
    close(llm)
    artifacts = {path.parent.parent.name for path in tmp_path.rglob("model") if path.is_file()}
    assert len(artifacts) == 3


@pytest.mark.parametrize("is_auto", [False, True], ids=["self:5", "self:auto"])
def test_draft_length_by_batch_size(mixed_model, is_auto):
    schedule = [(1, 2, 4), (3, 4, 2), (5, 5, 1), (6, 32, 0)]
    prompts = as_prompts(random_prompts([9] * 9, seed=6))
    params = [greedy(10 + 8 * i, ignore_eos=True) for i in range(9)]
    expected = generate_plainly(mixed_model, prompts, params)
    llm = make_llm(
        mixed_model,
        speculative_config={
            "model": "self:auto" if is_auto else "self:5",
            "num_speculative_tokens": 4,
            "num_speculative_tokens_per_batch_size": schedule,
        },
        additional_config={"layerskip": {"exit_layers": [1, 3, 5]} if is_auto else FIXED},
    )
    if is_auto:
        ScriptedChoices(llm, 3, 4)
    before = counts(llm)
    actual = generate(llm, prompts, params)
    counted = counts(llm).since(before)
    close(llm)
    assert actual == expected
    assert_speculated(counted)
    assert counted.num_drafted < 4 * counted.num_drafts
