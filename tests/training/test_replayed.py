"""Which exits a training writes into the checkpoint, and what it reports of them."""

import pytest
import torch
from PIL import Image

from layerskip_vllm.checkpoint.ideal import ideal_speedup
from layerskip_vllm.checkpoint.settings import CheckpointSettings, read_settings, write_settings
from layerskip_vllm.lens.lens import Lens, PromptTrace
from layerskip_vllm.training.card import CURVES_FILE
from layerskip_vllm.training.recipe import load_recipe
from layerskip_vllm.training.replayed import (
    DRAFT_LENGTHS,
    acceptance_report,
    best_settings,
    replay_prompts,
)
from layerskip_vllm.training.run import load_model, load_tokenizer
from tests.training.recipes import run, write_recipe

NUM_LAYERS, NUM_TOKENS = 16, 240


def lens_of(right_of_10: dict[int, int]) -> Lens:
    """A lens on one text; an exit is right at the first so many of every 10 tokens, or at none."""
    tokens = torch.arange(NUM_TOKENS)
    top1 = torch.full((NUM_LAYERS, NUM_TOKENS), -1)
    top1[-1] = tokens + 1
    for exit_layer, right in right_of_10.items():
        top1[exit_layer - 1] = torch.where(tokens % 10 < right, tokens + 1, -1)
    beyond = max(DRAFT_LENGTHS)
    trace = PromptTrace(
        tokens, 10, NUM_TOKENS - 10 - beyond, top1, torch.zeros(0), torch.zeros(NUM_LAYERS, 0)
    )
    return Lens(NUM_LAYERS, NUM_TOKENS, (trace,))


def test_the_exits_that_promise_most_are_named_best_first_with_their_k():
    settings = best_settings(lens_of({4: 9, 8: 9, 12: 9}), None)
    assert settings.exit_layers == (4, 8, 12)
    assert settings.num_speculative_tokens in DRAFT_LENGTHS[2:]
    assert all(0.8 < rate <= 1 for rate in settings.acceptance_rate)


def test_a_neighbour_of_a_named_exit_is_not_named():
    settings = best_settings(lens_of({4: 9, 5: 9, 8: 9, 12: 9}), None)
    assert settings.exit_layers == (4, 8, 12)


def test_a_fixed_curriculum_names_its_exits_only():
    settings = best_settings(lens_of({3: 10, 5: 3, 6: 8}), [6, 5])
    assert settings.exit_layers == (6, 5)
    assert settings.num_speculative_tokens > 1


def test_an_exit_that_is_never_right_drafts_one_token():
    assert best_settings(lens_of({}), [6]) == CheckpointSettings((6,), 1, (0.0,))


def test_a_model_of_one_layer_has_no_exit():
    assert best_settings(Lens(1, 8, ()), None) is None


def test_the_report_counts_the_drafts_that_vllm_would_accept():
    report = acceptance_report(lens_of({4: 10}))
    assert report["acceptance_length_exit_4"] == pytest.approx(5.0)
    assert report["acceptance_length_exit_8"] == 1.0


def test_the_ideal_speedup_is_that_of_the_best_k():
    # One draft of which none is accepted costs E / L more; eight that all are yield nine tokens.
    assert ideal_speedup(0.0, 4, 16, 8) == pytest.approx(16 / 20)
    assert ideal_speedup(1.0, 4, 16, 8) == pytest.approx(9 * 16 / (8 * 4 + 16))


def test_reports_and_checkpoint_have_what_the_replay_counted(directory):
    recipe = write_recipe(
        directory,
        "named",
        data={"validation": {"files": [str(directory / "validation.jsonl")]}},
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
    )
    evaluations = [report for report in run(recipe) if "eval_loss" in report]
    assert len(evaluations) == 3
    assert all(f"eval_acceptance_length_exit_{e}" in evaluations[0] for e in (1, 2, 3))
    card = (directory / "named" / "README.md").read_text()
    assert "Tokens per cycle, by exact replay" in card
    assert str(directory / "train.jsonl") in card
    with Image.open(directory / "named" / CURVES_FILE) as curves:
        assert min(curves.size) > 300
    settings = read_settings(directory / "named")
    assert settings.num_speculative_tokens in DRAFT_LENGTHS
    assert len(settings.acceptance_rate) == len(settings.exit_layers)


def test_a_model_in_training_generates_as_one_that_is_loaded(directory):
    from layerskip_vllm.training.early_exit_loss import prepare_for_layerskip

    recipe = load_recipe(write_recipe(directory, "generates"))
    model = load_model(recipe.model, load_tokenizer(recipe.model))
    prompts = [[1, 2, 3], [40, 50]]
    loaded = replay_prompts(model, prompts, None)
    prepare_for_layerskip(model)
    training = replay_prompts(model, prompts, None)
    for one, other in zip(loaded.traces, training.traces, strict=True):
        assert torch.equal(one.token_ids, other.token_ids)
        assert torch.equal(one.top1_ids, other.top1_ids)
    assert "forward" in model.__dict__


def test_without_an_evaluation_only_a_fixed_curriculum_names_exits(directory):
    run(write_recipe(directory, "unnamed", max_steps=1))
    assert read_settings(directory / "unnamed") is None
    fixed = {"curriculum": "fixed", "exit_layers": [3, 2], "rotation": None}
    recipe = write_recipe(directory, "fixed", layerskip=fixed, max_steps=1)
    recipe.write_text(recipe.read_text().replace("  rotation: null\n", ""))
    run(recipe)
    assert read_settings(directory / "fixed") == CheckpointSettings((2, 3))


def test_what_the_source_knew_of_its_exits_is_not_kept(directory):
    source = directory / "source"
    run(write_recipe(directory, "source", max_steps=1))
    write_settings(source, CheckpointSettings((2,)))
    recipe = write_recipe(directory, "continued", max_steps=1)
    text = recipe.read_text()
    start, end = text.index("model:"), text.index("trainer:")
    recipe.write_text(f"{text[:start]}model: {{path: {source}}}\n{text[end:]}")
    run(recipe)
    assert read_settings(directory / "continued") is None
