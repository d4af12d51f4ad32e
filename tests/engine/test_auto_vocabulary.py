"""`self:auto` with a draft vocabulary of its own choice: same output, dropped where it fails."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM
from vllm.engine.arg_utils import EngineArgs

from layerskip_vllm.config import Exit
from layerskip_vllm.measure.engine import scheduler
from layerskip_vllm.runner_v2.graphs import ProposeDescriptor, VerifyDescriptor
from layerskip_vllm.spec_decode import draft_vocabulary
from layerskip_vllm.vllm_config import self_speculation
from tests import emulated_graphs
from tests.engine.engines import (
    as_prompts,
    assert_speculated,
    close,
    counts,
    generate,
    generate_plainly,
    greedy,
    make_auto_llm,
    random_prompts,
)
from tests.engine.scripted_choices import ScriptedChoices
from tests.engine.seeded import requests

VOCAB_SIZE, SIZE = 4096, 1024
EXITS, K = [1, 2], 4


@pytest.fixture(scope="module")
def bare(random_llama):
    """Its LM head weighs as much as 2.7 of its layers."""
    return random_llama(
        num_layers=6, vocab_size=VOCAB_SIZE, late_scale=0.15, initializer_range=0.2, tied=True
    )


def with_counts(bare, directory, frequent) -> str:
    """The model with a file that says which tokens are frequent."""
    model = directory / "model"
    shutil.copytree(bare, model)
    others = (VOCAB_SIZE - len(frequent)) or 1
    counted = {str(token): 1 / others for token in range(VOCAB_SIZE)}
    counted |= {str(token): 9 * others / len(frequent) for token in frequent}
    (model / "token_counts.json").write_text(json.dumps(counted))
    return str(model)


@pytest.fixture(scope="module")
def model(bare, tmp_path_factory):
    """A checkpoint whose counts say that its first 1,024 tokens are frequent."""
    return with_counts(bare, tmp_path_factory.mktemp("counted"), range(SIZE))


def layerskip(model: str, **flags):
    options = {"layerskip": {"exit_layers": EXITS} | flags.pop("options", {})}
    args = EngineArgs(
        model, max_model_len=64, spec_model="self:auto", additional_config=options, **flags
    )
    return args.create_engine_config().speculative_config.layerskip


def test_the_start_names_its_size_and_bytes(model, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(self_speculation.logger, "info", lambda text, *a: lines.append(text % a))
    config = layerskip(model, dtype="float32")
    assert (config.draft_vocab_size, config.draft_vocab_share) == (SIZE, 0.25)
    assert config.exits == (Exit(0), Exit(1), Exit(0, uses_lm_head=True))
    assert "draft K=8 tokens among 1024 of 4096 (0.5 MB)" in lines[0]


def test_the_tokens_are_ranked_once(model, monkeypatch):
    ranked = []
    original = draft_vocabulary.draft_token_ids
    monkeypatch.setattr(
        draft_vocabulary,
        "draft_token_ids",
        lambda *args: ranked.append(args) or original(*args),
    )
    assert layerskip(model).draft_vocab_size == SIZE
    assert len(ranked) == 1


@pytest.mark.parametrize(
    "flags",
    [{"options": {"draft_vocab_size": 0}}, {"enable_lora": True}],
    ids=["forbidden", "lora"],
)
def test_the_whole_vocabulary_where_asked_or_needed(model, flags):
    config = layerskip(model, **flags)
    assert (config.draft_vocab_size, config.may_drop_vocab) == (None, False)


def test_without_counts_or_merges_nothing_ranks_the_tokens(bare):
    assert layerskip(bare).draft_vocab_size is None


def test_a_size_that_the_user_names_stays(model):
    counted = {"draft_vocab_counts": f"{model}/token_counts.json"}
    config = layerskip(model, options={"draft_vocab_size": 77} | counted)
    assert (config.draft_vocab_size, config.may_drop_vocab) == (77, False)
    assert layerskip(model, options=counted).draft_vocab_size == SIZE


@pytest.mark.parametrize("seeded", [pytest.param(False, marks=pytest.mark.on_v2), True])
def test_exit_and_head_that_change_every_step(model, seeded):
    prompts, params = requests(8) if seeded else (
        as_prompts(random_prompts([5, 17, 40, 3, 20])),
        greedy(50),
    )  # fmt: skip
    expected = generate_plainly(model, prompts, params)
    llm = make_auto_llm(model, EXITS, K)
    before = counts(llm)
    choices = ScriptedChoices(llm, 3, K)
    assert generate(llm, prompts, params) == expected
    assert {choice.exit_index for choice in choices.made} == {0, 1, 2}
    counted = counts(llm).since(before)
    close(llm)
    assert_speculated(counted)


@torch.no_grad()
def matches_by_transformers(model, prompts, outputs, layer, size) -> list[int]:
    """[reached, matched] of an exit that chooses among the first tokens."""
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    reached = matched = 0
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = torch.tensor([prompt["prompt_token_ids"] + output])
        states = whole(ids, output_hidden_states=True).hidden_states[layer]
        drafts = whole.lm_head(whole.model.norm(states))[0, :, :size].argmax(dim=-1)
        reached += len(output)
        matched += int((drafts[-len(output) - 1 : -1] == torch.tensor(output)).sum())
    return [reached, matched]


@pytest.mark.on_v2
def test_observing_steps_count_for_each_head(model):
    prompts = as_prompts(random_prompts([5, 17, 40]))
    llm = make_auto_llm(model, EXITS, K)
    choices = ScriptedChoices(llm, 3, K, observing=1.0)
    outputs = generate(llm, prompts, greedy(40, ignore_eos=True))
    close(llm)
    expected = [
        matches_by_transformers(model, prompts, outputs, layer, size)
        for layer, size in ((1, SIZE), (2, SIZE), (1, VOCAB_SIZE))
    ]
    assert choices.counts == expected
    assert expected[0] != expected[2]


def test_a_vocabulary_without_the_texts_tokens_is_dropped(bare, tmp_path):
    """The counts name tokens that the output never holds: only the whole LM head can draft it."""
    prompts = as_prompts(random_prompts([5, 9, 20, 12]))
    params = greedy(150, ignore_eos=True)
    expected = generate_plainly(bare, prompts, params)
    emitted = {token for output in expected for token in output}
    unused = [token for token in range(VOCAB_SIZE) if token not in emitted][:SIZE]
    llm = make_auto_llm(with_counts(bare, tmp_path, unused), EXITS, K)
    policy = scheduler(llm).policy
    assert len(policy.outcomes) == 3
    chosen: list[tuple[int, int]] = []
    choose = policy.choose
    policy.choose = lambda limits: chosen.append(choice := choose(limits)) or choice
    assert generate(llm, prompts, params) == expected
    close(llm)
    rates = [outcomes.match_rate for outcomes in policy.outcomes]
    assert max(rates[:2]) < 0.1 < rates[2]
    drafting = [choice.exit_index for choice in chosen if choice.num_drafts]
    assert drafting[0] == 0
    late = drafting[len(drafting) // 2 :]
    assert not late or late.count(2) > 0.6 * len(late)


@pytest.mark.runner_v2
def test_each_head_has_its_graphs(model, monkeypatch):
    """Two exits of one layer draft by different heads, and resume by the same graphs."""
    replays = emulated_graphs.emulate(monkeypatch, is_async=True)
    prompts, params = as_prompts(random_prompts([5, 17])), greedy(10)
    expected = generate_plainly(model, prompts, params)
    llm = make_auto_llm(model, EXITS, 2, max_num_seqs=4, kv_cache_memory_bytes=4 << 20)
    ScriptedChoices(llm, 3, 2)
    assert generate(llm, prompts, params) == expected
    close(llm)
    exits = {(type(desc), getattr(desc, "exit_index", 0)) for desc in replays}
    assert {(ProposeDescriptor, 1), (ProposeDescriptor, 2), (VerifyDescriptor, 1)} < exits
    assert (VerifyDescriptor, 2) not in exits
