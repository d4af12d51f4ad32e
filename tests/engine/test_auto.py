"""Output under `self:auto` equals plain decoding's, whichever exit each step chooses."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from layerskip_vllm.measure.engine import scheduler
from layerskip_vllm.scheduling.policy import Choice
from tests.engine.engines import (
    as_prompts,
    assert_speculated,
    close,
    counts,
    generate,
    generate_plainly,
    generate_with_pauses,
    greedy,
    make_auto_llm,
    make_self_llm,
    note_most_drafts,
    num_preemptions,
    random_prompts,
)
from tests.engine.features import IN_ALL_SCENARIOS
from tests.engine.scripted_choices import ScriptedChoices
from tests.engine.seeded import requests, seeded

EXITS = [1, 3, 4]
K = 4


@pytest.fixture(scope="module")
def model(random_llama):
    """Its drafts are right about half of the time, even at temperatures above 0."""
    return random_llama(num_layers=6, late_scale=0.15, initializer_range=0.2)


def assert_equal(model, prompts, params, exit_layers=EXITS, options=None, **settings):
    """Run twice with another script each; the second run finds prefixes in the cache."""
    expected = generate_plainly(model, prompts, params)
    llm = make_auto_llm(model, exit_layers, K, options, **settings)
    before, preempted_before = counts(llm), num_preemptions(llm)
    for seed in range(2):
        choices = ScriptedChoices(llm, len(exit_layers), K, seed)
        assert generate(llm, prompts, params) == expected
        assert {choice.exit_index for choice in choices.made} == set(range(len(exit_layers)))
        assert choices.observed or len(exit_layers) == 1
    counted, preempted = counts(llm).since(before), num_preemptions(llm) - preempted_before
    close(llm)
    assert_speculated(counted)
    return preempted


@pytest.mark.parametrize("exit_layers", [[2], [5, 1], EXITS], ids=str)
def test_an_exit_that_changes_every_step(model, exit_layers):
    prompts = as_prompts(random_prompts([5, 17, 40, 90, 3, 20]))
    assert_equal(model, prompts, greedy(60), exit_layers)


def test_seeded_requests(model):
    assert_equal(model, *requests(16))


def test_prompts_in_chunks_beside_decodes(model):
    prompts = as_prompts(random_prompts([70, 5, 33, 90, 12, 60, 3, 41], seed=2))
    assert_equal(model, prompts, greedy(40), max_num_batched_tokens=48, max_num_seqs=8)


def test_preempted_requests_start_over(model):
    prompts = as_prompts(random_prompts([40, 50, 30, 45, 38, 42], seed=5))
    params = [seeded(400 + i, num_options=1, max_tokens=110) for i in range(len(prompts))]
    for one in params:
        one.max_tokens = 110
    assert assert_equal(model, prompts, params, num_gpu_blocks_override=12) > 0


def test_drawn_drafts_of_which_one_token_alone_may_stay(model):
    """`min_p` leaves the target its top token, so rejection sampling gives the greedy output."""
    prompts = as_prompts(random_prompts([5, 17, 40, 90, 3, 20]))
    expected = generate_plainly(model, prompts, greedy(60, ignore_eos=True))
    drawn = {"speculative_config": {"draft_sample_method": "probabilistic"}}
    llm = make_self_llm(model, EXITS, K, **drawn)
    before = counts(llm)
    params = greedy(60, ignore_eos=True, temperature=1, min_p=1.0)
    assert generate(llm, prompts, params) == expected
    counted = counts(llm).since(before)
    close(llm)
    assert_speculated(counted)


@pytest.mark.parametrize("level", [0, 1])
def test_a_pause_leaves_requests_unchanged(model, level):
    prompts, params = as_prompts(random_prompts([20, 7, 33], seed=5)), greedy(50, ignore_eos=True)
    expected = generate_plainly(model, prompts, params)
    llm = make_self_llm(model, EXITS, K)
    before = counts(llm)
    assert generate_with_pauses(llm, prompts, params, level) == expected
    counted = counts(llm).since(before)
    close(llm)
    assert_speculated(counted)


@pytest.mark.on_v2
def test_each_request_keeps_its_own_limit_of_drafts(model):
    prompts = as_prompts(random_prompts([5, 17, 40, 3]))
    limits = [{"layerskip": False}, {"num_speculative_tokens": 1}, {"num_speculative_tokens": 2}]
    params = [greedy(30, ignore_eos=True, extra_args=args) for args in [*limits, None]]
    expected = generate_plainly(model, prompts, greedy(30, ignore_eos=True))
    llm = make_self_llm(model, EXITS, K)
    most = note_most_drafts(llm)
    assert generate(llm, prompts, params) == expected
    close(llm)
    assert sorted(most.values()) == [1, 2, K]


def test_drafts_of_a_restricted_vocabulary(model, tmp_path):
    file = tmp_path / "counts.json"
    file.write_text(json.dumps({str(i): 1 for i in range(150)}))
    options = {"draft_vocab_size": 150, "draft_vocab_counts": str(file)}
    prompts = as_prompts(random_prompts([5, 17, 40, 3]))
    assert_equal(model, prompts, greedy(40), options=options)


def test_without_the_exit_query_cache(model):
    prompts = as_prompts(random_prompts([5, 17, 40, 3]))
    expected = generate_plainly(model, prompts, greedy(40))
    llm = make_auto_llm(model, EXITS, K, {"exit_query_cache": False})
    ScriptedChoices(llm, len(EXITS), K)
    assert generate(llm, prompts, greedy(40)) == expected
    close(llm)


@pytest.mark.runner_v1
def test_adapters(tmp_path):
    feature = IN_ALL_SCENARIOS["adapters"]
    prepared = feature.prepare(tmp_path)
    prompts = as_prompts(random_prompts([5, 17, 40, 3, 20]))
    adapters = prepared.adapters_of(len(prompts))
    expected = generate_plainly(prepared.model, prompts, greedy(40), adapters, **feature.settings)
    llm = make_auto_llm(prepared.model, EXITS, K, **feature.settings)
    ScriptedChoices(llm, len(EXITS), K)
    assert generate(llm, prompts, greedy(40), adapters) == expected
    close(llm)


@torch.no_grad()
def matches_by_transformers(model, prompts, outputs) -> list[list[int]]:
    """[reached, matched] of each exit: whether its top token is the one that was emitted."""
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found = [[0, 0] for _ in EXITS]
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = torch.tensor([prompt["prompt_token_ids"] + output])
        states = whole(ids, output_hidden_states=True).hidden_states
        for counted, exit_layer in zip(found, EXITS, strict=True):
            logits = whole.lm_head(whole.model.norm(states[exit_layer]))[0]
            drafts = logits.argmax(dim=-1)[-len(output) - 1 : -1]
            counted[0] += len(output)
            counted[1] += int((drafts == torch.tensor(output)).sum())
    return found


@pytest.mark.on_v2
@pytest.mark.parametrize("chunks", [{}, {"max_num_batched_tokens": 32, "max_num_seqs": 4}], ids=str)
def test_observing_steps_count_what_each_exit_would_draft(model, chunks):
    """If every step observes, each emitted token has one row: counts are those of the text.

    They are read from what the cycle leaves at the exits, and where it resumes from nothing, by the
    full forward.
    """
    prompts = as_prompts(random_prompts([5, 17, 40, 3, 70]))
    params = [greedy(20 + 7 * i, ignore_eos=True) for i in range(len(prompts))]
    llm = make_auto_llm(model, EXITS, K, **chunks)
    choices = ScriptedChoices(llm, len(EXITS), K, observing=1.0)
    before = counts(llm)
    outputs = generate(llm, prompts, params)
    counted = counts(llm).since(before)
    close(llm)
    assert outputs == generate_plainly(model, prompts, params)
    assert counted.num_resumed > 0
    expected = matches_by_transformers(model, prompts, outputs)
    assert choices.counts == expected
    assert len({matched for _, matched in expected}) == len(EXITS)


def test_counts_show_in_the_gauges(model):
    llm = make_auto_llm(model, EXITS, K)
    policy = scheduler(llm).policy
    policy.choose = lambda limits: Choice(2, min(3, max(limits, default=0)), True)
    generate(llm, as_prompts(random_prompts([9])), greedy(30, ignore_eos=True))
    rates = [outcomes.match_rate for outcomes in policy.outcomes]
    shown = {}
    for metric in llm.get_metrics():
        key = metric.labels.get("exit_layer", "")
        shown[metric.name.removeprefix("vllm:layerskip_") + key] = getattr(metric, "value", None)
    close(llm)
    assert shown["exit_layer"] == EXITS[2]
    assert shown["num_drafts"] == 0  # after the last token
    learnt = [shown[f"exit_match_rate{exit_layer}"] for exit_layer in EXITS]
    assert len(set(learnt)) == len(EXITS)
    assert learnt == pytest.approx(rates, abs=0.05)


@pytest.mark.slow
@pytest.mark.runner_v1
def test_each_segment_compiles_once(random_llama, monkeypatch, tmp_path):
    """Four segments and the whole model; two of a kind must not share a graph on disk."""
    from vllm.compilation.counter import compilation_counter

    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    model = random_llama(num_layers=4, late_scale=0.3)
    prompts = as_prompts(random_prompts([5, 33, 9]))
    params = [greedy(n, ignore_eos=True) for n in (40, 8, 20)]
    expected = generate_plainly(model, prompts, params)
    with compilation_counter.expect(num_aot_compiles=5):
        llm = make_auto_llm(model, [1, 2, 3], K, enforce_eager=False)
    ScriptedChoices(llm, 3, K)
    # No step compiles anything, whatever its shape, exit and kind.
    with compilation_counter.expect(num_aot_compiles=0, num_inductor_compiles=0):
        assert generate(llm, prompts, params) == expected
    close(llm)
    artifacts = {path.parent.parent.name for path in tmp_path.rglob("model") if path.is_file()}
    assert len(artifacts) == 5
