"""Exits against models cut at the same layer, and statistics against plain loops."""

import itertools
import math
from typing import ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from layerskip_vllm.lens import lens as lens_module
from layerskip_vllm.lens import speed
from layerskip_vllm.lens.continuation import continue_greedily
from layerskip_vllm.lens.exits import cut, exit_states, num_parameters
from layerskip_vllm.lens.lens import look, settle_layers
from layerskip_vllm.lens.speed import Decoding

NUM_LAYERS = 6
PROMPTS = [list(range(40, 60)), [5, 6, 7], list(range(200, 130, -1))]


@pytest.fixture(scope="module", params=[False, True], ids=["own-head", "tied-head"])
def model(request, random_llama):
    path = random_llama(num_layers=NUM_LAYERS, late_scale=0.2, tied=request.param)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def lens(model):
    return look(model, PROMPTS, max_tokens=30)


def shorter(path, exit_layer):
    """The checkpoint loaded as a model of E layers, which `cut` must equal."""
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, num_hidden_layers=exit_layer
    ).eval()


@torch.inference_mode()
def test_last_exit_is_the_model_itself(model):
    ids = torch.tensor(PROMPTS[2])
    logits = model.lm_head(exit_states(model, ids)[-1])
    assert torch.equal(logits, model(ids[None]).logits[0])


@pytest.mark.parametrize("exit_layer", range(1, NUM_LAYERS + 1))
@torch.inference_mode()
def test_each_exit_is_the_model_that_ends_there(model, exit_layer):
    ids = torch.tensor(PROMPTS[2])
    expected = shorter(model.name_or_path, exit_layer)
    states = exit_states(model, ids)
    assert len(states) == NUM_LAYERS
    assert torch.equal(model.lm_head(states[exit_layer - 1]), expected(ids[None]).logits[0])
    assert torch.equal(cut(model, exit_layer)(ids[None]).logits[0], expected(ids[None]).logits[0])
    assert num_parameters(model, exit_layer) == expected.num_parameters()


def test_a_cut_model_holds_the_same_parameters(model):
    whole = {id(parameter) for parameter in model.parameters()}
    assert {id(parameter) for parameter in cut(model, 2).parameters()} < whole
    assert len(model.model.layers) == NUM_LAYERS
    assert model.config.num_hidden_layers == NUM_LAYERS


def test_a_cut_model_decodes_with_its_cache(model):
    """The lens times these steps, so they must be real decoding."""
    with torch.inference_mode():
        short = cut(model, 2)
        decoding, written = Decoding(short, PROMPTS[0]), []
        for _ in range(8):
            written.append(int(decoding.next_ids))
            decoding.step()
        expected = continue_greedily(short, PROMPTS[0], 8, 0, frozenset())
        assert tuple(written) == expected.token_ids
        assert len(decoding.cache.layers) == 2
        assert decoding.cache.get_seq_length() == len(PROMPTS[0]) + 8


class FakeDecoding:
    """A step takes one second per layer, and far longer in the first round."""

    order: ClassVar[list[int]] = []

    def __init__(self, model, context):
        self.num_layers = len(model.model.layers)

    def step(self):
        self.order.append(self.num_layers)
        is_first_round = self.order.count(self.num_layers) <= 1 + speed.NUM_TIMED_STEPS
        return self.num_layers + 100 * is_first_round


def test_exits_take_turns_and_the_first_round_does_not_count(model, monkeypatch):
    monkeypatch.setattr(speed, "Decoding", FakeDecoding)
    monkeypatch.setattr(FakeDecoding, "order", [])
    speeds = speed.measure_tokens_per_s(model, [1, 4, NUM_LAYERS], PROMPTS[0], num_rounds=2)
    assert speeds == {1: 1, 4: 1 / 4, NUM_LAYERS: 1 / NUM_LAYERS}
    turns = [layers for layers, _ in itertools.groupby(FakeDecoding.order)]
    # Exit 1 closes the first round and opens the second.
    assert turns == [6, 4, 1, 4, 6]


def test_continuation_is_what_the_model_generates(model, lens):
    for prompt, trace in zip(PROMPTS, lens.traces, strict=True):
        generated = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=30, eos_token_id=None
        )[0]
        assert torch.equal(trace.token_ids[: len(prompt) + 30], generated)
        assert trace.num_new_tokens == 30
        assert len(trace.token_ids) == len(prompt) + 30


def test_a_stop_token_ends_the_continuation_and_is_part_of_it(model, lens):
    written = lens.traces[0].token_ids[len(PROMPTS[0]) :].tolist()
    stop = written[11]
    end = written.index(stop) + 1
    (trace,) = look(model, PROMPTS[:1], max_tokens=30, stop_ids={stop}).traces
    assert trace.num_new_tokens == end
    # Decoding continues beyond it, as far as the last cycle's drafts reach.
    assert trace.token_ids.tolist() == PROMPTS[0] + written[: end + 7]


def test_perplexity_and_agreement_equal_a_plain_loop(model, lens):
    for exit_layer in range(1, NUM_LAYERS + 1):
        losses, same = [], []
        for prompt in PROMPTS:
            ids = torch.tensor([prompt])
            with torch.inference_mode():
                logits = shorter(model.name_or_path, exit_layer)(ids).logits[0]
                last = model(ids).logits[0]
            losses.append(
                torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
            )
            same.append(logits.argmax(-1) == last.argmax(-1))
        perplexity = math.exp(torch.cat(losses).double().mean())
        assert lens.perplexity()[exit_layer - 1] == pytest.approx(perplexity, rel=1e-5)
        agreement = torch.cat(same).double().mean().item()
        assert lens.agreement("text")[exit_layer - 1] == agreement


def test_continuation_agreement_compares_with_the_next_token(lens):
    for exit_layer in range(1, NUM_LAYERS):
        hits = [trace.agreements(exit_layer)[: trace.num_new_tokens - 1] for trace in lens.traces]
        flat = [hit for one in hits for hit in one]
        assert len(flat) == 3 * 29
        share = sum(flat) / len(flat)
        assert lens.agreement("continuation")[exit_layer - 1] == pytest.approx(share)


def test_chunks_change_nothing(model, lens, monkeypatch):
    monkeypatch.setattr(lens_module, "CHUNK_TOKENS", 7)
    for trace, expected in zip(
        look(model, PROMPTS, max_tokens=30).traces, lens.traces, strict=True
    ):
        assert torch.equal(trace.top1_ids, expected.top1_ids)
        torch.testing.assert_close(trace.losses, expected.losses)
        torch.testing.assert_close(trace.top1_probs, expected.top1_probs)


def test_late_layers_that_add_nothing_agree_everywhere(random_llama):
    path = random_llama(num_layers=NUM_LAYERS, late_scale=0.0, late_from=3)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    silent = look(model, PROMPTS, max_tokens=21)
    for section in ("text", "continuation"):
        assert silent.agreement(section)[2:] == [1.0] * 4
        assert silent.agreement(section)[1] < 0.9
        assert silent.mean_settle_layer(section) <= 3
    counts = silent.expect(3, 4).counts
    assert counts.num_accepted == counts.num_drafted > 0
    assert silent.expect(3, 4).ideal_speedup == 5 / ((4 * 3 + 6) / 6)


def test_settle_layer_is_the_first_exit_from_which_nothing_changes():
    top1_ids = torch.tensor(
        [
            [7, 7, 1, 7],
            [7, 1, 2, 7],
            [7, 7, 3, 1],
            [7, 7, 4, 7],
        ]
    )
    assert settle_layers(top1_ids).tolist() == [1, 3, 4, 4]


def test_looking_disables_dropout_and_keeps_training_mode(random_llama):
    path = random_llama(num_layers=2)
    model = AutoModelForCausalLM.from_pretrained(path, attention_dropout=0.5)
    expected = look(model.eval(), PROMPTS, max_tokens=4)
    model.train()
    actual = look(model, PROMPTS, max_tokens=4)
    assert model.training
    assert actual.perplexity() == expected.perplexity()


def test_nothing_to_draft_gives_no_figures(model, lens):
    first = int(lens.traces[1].token_ids[3])
    alone = look(model, [PROMPTS[1]], max_tokens=30, stop_ids={first})
    assert alone.traces[0].num_new_tokens == 1
    assert alone.agreement("continuation") == [None] * NUM_LAYERS
    assert alone.mean_settle_layer("continuation") is None
    assert alone.expect(2, 3).ideal_speedup is None
    assert look(model, [[9]], max_tokens=2).perplexity() == [None] * NUM_LAYERS


def test_another_architecture_is_refused_by_name():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=8, n_layer=2, n_head=2))
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel has no model\.layers, model\.norm: "):
        look(model, [[1, 2]])


def test_a_model_that_scales_its_logits_is_refused(random_llama):
    model = AutoModelForCausalLM.from_pretrained(random_llama(num_layers=2))
    forward = model.forward

    def scaled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits / 2
        return output

    model.forward = scaled
    with pytest.raises(ValueError, match="more than norm and LM head"):
        look(model, [[1, 2]])
