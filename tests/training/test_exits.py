"""Which exits a training writes into the checkpoint, and when it writes none."""

import pytest

from layerskip_vllm.checkpoint.ideal import ideal_speedup
from layerskip_vllm.checkpoint.settings import CheckpointSettings, read_settings, write_settings
from layerskip_vllm.training.exits import known_settings
from tests.training.recipes import run, write_recipe

NUM_LAYERS = 16


def metrics(agreement: dict[int, float]) -> dict[str, float]:
    every = dict.fromkeys(range(1, NUM_LAYERS), 0.0) | agreement
    return {f"eval_agreement_exit_{e}": rate for e, rate in every.items()} | {"eval_loss": 1.0}


def test_the_exits_that_promise_most_are_named_best_first():
    known = known_settings(None, metrics({4: 0.9, 8: 0.93, 12: 0.95}), NUM_LAYERS)
    assert known == CheckpointSettings((4, 8, 12), acceptance_rate=(0.9, 0.93, 0.95))


def test_a_neighbour_of_a_named_exit_is_not_named():
    known = known_settings(None, metrics({4: 0.9, 5: 0.91, 8: 0.93, 12: 0.95}), NUM_LAYERS)
    assert known.exit_layers == (4, 8, 12)


def test_a_fixed_curriculum_names_its_exits_only():
    known = known_settings([6, 5], metrics({3: 0.99, 5: 0.5, 6: 0.8}), NUM_LAYERS)
    assert known == CheckpointSettings((6, 5), acceptance_rate=(0.8, 0.5))


def test_without_an_evaluation_only_a_fixed_curriculum_names_exits():
    assert known_settings([6, 5], {}, NUM_LAYERS) == CheckpointSettings((5, 6))
    assert known_settings(None, {}, NUM_LAYERS) is None


def test_a_model_of_one_layer_has_no_exit():
    assert known_settings(None, {}, 1) is None
    assert known_settings([1], {"eval_agreement_exit_1": 1.0}, 1) is None


def test_the_ideal_speedup_is_that_of_the_best_k():
    # One draft of which none is accepted costs E / L more; eight that all are yield nine tokens.
    assert ideal_speedup(0.0, 4, 16) == pytest.approx(16 / 20)
    assert ideal_speedup(1.0, 4, 16) == pytest.approx(9 * 16 / (8 * 4 + 16))


def test_the_checkpoint_names_what_the_evaluation_measured(directory):
    recipe = write_recipe(
        directory,
        "named",
        data={"validation": {"files": [str(directory / "validation.jsonl")]}},
        max_steps=2,
    )
    reports = run(recipe)
    evaluation = next(report for report in reports if "eval_loss" in report)
    settings = read_settings(directory / "named")
    assert settings.acceptance_rate == pytest.approx(
        [evaluation[f"eval_agreement_exit_{e}"] for e in settings.exit_layers], abs=1e-4
    )


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
