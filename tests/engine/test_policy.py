"""Greedy float32 output equals plain decoding's, however the draft length is chosen."""

import json
from types import SimpleNamespace

import pytest
from vllm.model_executor.models.llama import LlamaDecoderLayer

from layerskip_vllm.scheduling import scheduler
from layerskip_vllm.scheduling.policy import Choice, DraftPolicy
from tests.engine.engines import (
    as_prompts,
    close,
    counts,
    drafter,
    generate,
    greedy,
    make_llm,
    make_self_llm,
    random_prompts,
    runner,
)

LENGTHS = [5, 17, 40, 90, 3, 20]
MAX_TOKENS = 60


@pytest.fixture(scope="module")
def model(random_llama):
    """Its drafts are accepted about half of the time."""
    return random_llama(num_layers=6, late_scale=0.3)


@pytest.fixture(scope="module")
def prompts():
    return as_prompts(random_prompts(LENGTHS))


@pytest.fixture(scope="module")
def plain_outputs(model, prompts):
    llm = make_llm(model)
    outputs = generate(llm, prompts, greedy(MAX_TOKENS))
    close(llm)
    return outputs


@pytest.fixture
def run(model, prompts, plain_outputs):
    """Generate with some options and compare with plain decoding; returns counts and drafter."""

    def run(options, exit_layer=3, num_speculative_tokens=4, **overrides):
        llm = make_self_llm(model, exit_layer, num_speculative_tokens, options, **overrides)
        before = counts(llm)
        assert generate(llm, prompts, greedy(MAX_TOKENS)) == plain_outputs
        assert generate(llm, prompts[::-1], greedy(MAX_TOKENS)) == plain_outputs[::-1]
        counted, its_drafter = counts(llm).since(before), drafter(runner(llm))
        close(llm)
        return counted, its_drafter

    return run


@pytest.fixture
def chosen(monkeypatch):
    """Every K that the policy chooses."""
    original, seen = DraftPolicy.choose, []

    def choose(self, *args):
        choice = original(self, *args)
        seen.append(choice.num_drafts)
        return choice

    monkeypatch.setattr(DraftPolicy, "choose", choose)
    return seen


@pytest.fixture
def _layers_take_time(monkeypatch):
    """The policy's clock: each decoder layer takes a millisecond, everything else no time."""
    original, seconds = LlamaDecoderLayer.forward, [0.0]

    def forward(self, *args, **kwargs):
        seconds[0] += 1e-3
        return original(self, *args, **kwargs)

    monkeypatch.setattr(LlamaDecoderLayer, "forward", forward)
    monkeypatch.setattr(scheduler, "time", SimpleNamespace(perf_counter=lambda: seconds[0]))


def test_the_defaults(run):
    counted, _ = run({"adaptive": True})
    assert counted.num_drafts > 0


def test_a_draft_length_that_changes_every_step(run, monkeypatch):
    lengths = iter([4, 0, 1, 3, 0, 0, 2] * 1000)
    monkeypatch.setattr(DraftPolicy, "choose", lambda *args: Choice(0, next(lengths)))
    counted, _ = run({"adaptive": True})
    assert counted.num_resumed > 0
    assert 0 < counted.num_accepted < counted.num_drafted < 4 * counted.num_drafts


@pytest.mark.usefixtures("_layers_take_time")
def test_adaptive_stops_drafting_when_drafts_fail(random_llama, chosen):
    """With random layers a draft costs nearly a full step, and few are right."""
    llm = make_self_llm(random_llama(num_layers=6), 5, 4, {"adaptive": True})
    generate(llm, as_prompts(random_prompts([9])), greedy(200, ignore_eos=True))
    close(llm)
    assert sum(k > 0 for k in chosen[50:]) < 0.2 * len(chosen[50:])


@pytest.mark.usefixtures("_layers_take_time")
def test_adaptive_keeps_drafting_when_drafts_are_right(random_llama, chosen):
    """Layers [1, L) add nothing, so one layer drafts correctly for 24."""
    llm = make_self_llm(
        random_llama(num_layers=24, late_scale=0.0), 1, 4, {"adaptive": True}, max_num_seqs=4
    )
    generate(llm, as_prompts(random_prompts([9])), greedy(200, ignore_eos=True))
    close(llm)
    assert sum(k > 0 for k in chosen) > 0.5 * len(chosen)


def test_a_draft_vocabulary_affects_only_drafts(run, tmp_path):
    full, _ = run({})
    file = tmp_path / "counts.json"
    file.write_text(json.dumps({str(i): 1000 - i for i in range(100)}))
    part, its_drafter = run({"draft_vocab_size": 100, "draft_vocab_counts": str(file)})
    head = its_drafter.draft_head
    assert head.token_ids.tolist() == [*range(99), 256]  # the most frequent, and the end of text
    assert 0 < part.num_accepted / part.num_drafted < full.num_accepted / full.num_drafted
    assert part.num_resumed > 0


def test_a_draft_vocabulary_of_one_token_leaves_output_unchanged(run, tmp_path):
    file = tmp_path / "counts.json"
    file.write_text("{}")
    options = {"draft_vocab_size": 1, "draft_vocab_counts": str(file)}
    counted, _ = run(options)
    assert counted.num_drafted > 0


def test_a_full_draft_vocabulary_changes_no_draft(run, tmp_path):
    file = tmp_path / "counts.json"
    file.write_text("{}")
    full, _ = run({})
    whole, its_drafter = run({"draft_vocab_size": 320, "draft_vocab_counts": str(file)})
    assert its_drafter.draft_head is not None
    assert whole == full


@pytest.mark.parametrize("exit_query_cache", [True, False])
def test_all_options_together(run, tmp_path, exit_query_cache):
    file = tmp_path / "counts.json"
    file.write_text(json.dumps({str(i): 1 for i in range(200)}))
    counted, _ = run(
        {
            "adaptive": True,
            "draft_vocab_size": 150,
            "draft_vocab_counts": str(file),
            "exit_query_cache": exit_query_cache,
        },
        max_num_batched_tokens=32,
        max_num_seqs=4,
    )
    assert counted.num_drafts > 0
