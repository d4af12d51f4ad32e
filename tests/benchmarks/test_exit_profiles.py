"""The random model whose best exit depends on the text."""

import json

import pytest
import torch

from benchmarks.auto_vs_fixed.subjects import Subject
from benchmarks.exit_profiles import PROFILED_1B, PROFILED_SMALL, mean_agreements
from benchmarks.profiled_llama import ProfiledLlama, token_range
from benchmarks.random_llama import SMALL
from layerskip_vllm.vllm_config.exit_candidates import of_depth

SHALLOW, DEEP, NONE = range(3)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAYERSKIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        return PROFILED_SMALL.prepare()


@pytest.fixture(scope="module")
def profiles(prepared):
    return json.loads((prepared.parent / "profiles.json").read_text())


def test_each_set_has_its_own_best_exit(profiles):
    agreements = mean_agreements(profiles)
    shallow = agreements["shallow"]
    assert shallow == [pytest.approx(0.80, abs=0.05)] * 3  # deeper ones are no better
    first, middle, last = agreements["deep"]
    assert first < 0.1 < middle < last
    assert last == pytest.approx(0.87, abs=0.05)
    assert max(agreements["none"]) < 0.1


def test_auto_chooses_among_the_calibrated_exits(prepared):
    subject = Subject.of("m", prepared, {}, "float32")
    assert subject.exit_layers == PROFILED_SMALL.exit_layers
    assert PROFILED_1B.exit_layers == of_depth(PROFILED_1B.shape.num_layers)


def test_texts_do_not_loop(profiles):
    for profile in profiles:
        assert profile["by_exit"][0]["new_ngrams"] > 0.7, profile["name"]


def test_a_text_keeps_to_its_set(prepared):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(prepared)
    for index in range(3):
        prompts = torch.tensor(PROFILED_SMALL.prompts(index, 2))
        written = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            max_new_tokens=24,
            pad_token_id=0,
        )
        ids = token_range(SMALL.vocab_size, 3, index)
        assert ((written >= ids.start) & (written < ids.stop)).all()


def test_a_gate_changes_the_texts_of_its_set_only():
    llama = ProfiledLlama(SMALL.build(torch.float32), first_layer=2, num_sets=3)
    prompts = {i: torch.tensor(PROFILED_SMALL.prompts(i, 2)) for i in range(3)}

    @torch.inference_mode()
    def logits():
        return {i: llama.model(prompts[i]).logits for i in prompts}

    before = logits()
    llama.set_gates(range(2, 4), DEEP, 1.0)
    after = logits()
    assert torch.equal(before[SHALLOW], after[SHALLOW])
    assert torch.equal(before[NONE], after[NONE])
    assert not torch.allclose(before[DEEP], after[DEEP])
