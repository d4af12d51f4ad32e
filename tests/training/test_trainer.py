"""Whole runs on a tiny model: equivalences, reports and resuming."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments, default_data_collator

from layerskip_vllm.training.data import load_rows
from layerskip_vllm.training.recipe import load_recipe
from layerskip_vllm.training.run import load_model, load_tokenizer, set_seed, training_arguments
from tests.commands import LAYERSKIP_VLLM
from tests.training.recipes import curve, history, run, write_recipe

START_LIMIT_S = 300


@pytest.fixture(scope="module")
def reference(directory):
    """Recipe and log of the run that others are compared with."""
    recipe = write_recipe(directory, "reference")
    return recipe, run(recipe)


def weights(recipe) -> dict[str, torch.Tensor]:
    return load_file(Path(load_recipe(recipe).trainer.output_dir) / "model.safetensors")


def plain_trainer(recipe_path) -> Trainer:
    """transformers' own Trainer on the same model, data and arguments."""
    recipe = load_recipe(recipe_path)
    args: TrainingArguments = training_arguments(recipe)
    set_seed(args.seed)
    tokenizer = load_tokenizer(recipe.model)
    model = load_model(recipe.model, tokenizer)
    rows = load_rows(recipe.data.train, recipe.data, tokenizer)
    return Trainer(model, args, train_dataset=rows, data_collator=default_data_collator)


def test_without_dropout_and_exits_training_equals_the_plain_trainers(directory):
    # Plain gradient descent, since Adam amplifies the last bit of a small gradient.
    arguments = {
        "layerskip": {"p_max": 0.0, "e_scale": 0.0},
        "gradient_accumulation_steps": 2,
        "optim": "sgd",
        "learning_rate": 0.5,
    }
    ours = write_recipe(directory, "off", **arguments)
    reports = run(ours)
    plain = plain_trainer(write_recipe(directory, "plain", **arguments))
    plain.train()
    expected = [entry for entry in plain.state.log_history if "loss" in entry]
    for name in ("loss", "grad_norm"):
        assert curve(reports, name) == pytest.approx(curve(expected, name), abs=1e-5)
    trained = plain.model.state_dict()
    for name, tensor in weights(ours).items():
        torch.testing.assert_close(tensor, trained[name])


def test_the_seed_decides_the_run(directory, reference):
    recipe, reports = reference
    again = run(write_recipe(directory, "again"))
    other = run(write_recipe(directory, "other", seed=4))
    assert reports == again
    assert curve(reports) != curve(other)
    for name, tensor in weights(recipe).items():
        assert torch.equal(tensor, weights(directory / "again.yaml")[name])


def test_dropout_and_exits_change_the_run(directory, reference):
    for name, off in (("no dropout", {"p_max": 0.0}), ("no exits", {"e_scale": 0.0})):
        assert curve(run(write_recipe(directory, name, layerskip=off))) != curve(reference[1])


def test_gradient_accumulation_is_a_larger_batch(directory, reference):
    recipe = write_recipe(
        directory, "accumulated", per_device_train_batch_size=1, gradient_accumulation_steps=4
    )
    assert curve(run(recipe)) == pytest.approx(curve(reference[1]), abs=1e-4)


def test_gradient_checkpointing_is_the_same_run(directory, reference):
    recipe = write_recipe(directory, "checkpointed", gradient_checkpointing=True)
    assert curve(run(recipe)) == pytest.approx(curve(reference[1]), abs=1e-4)


def test_bfloat16_follows_float32_and_saves_the_requested_dtype(directory, reference):
    recipe = write_recipe(directory, "bf16", bf16=True)
    recipe.write_text(recipe.read_text().replace("model:", "model:\n  save_dtype: bfloat16"))
    assert curve(run(recipe)) == pytest.approx(curve(reference[1]), rel=0.02)
    assert {tensor.dtype for tensor in weights(recipe).values()} == {torch.bfloat16}


def test_trained_and_evaluated_exits_are_reported(directory):
    recipe = write_recipe(
        directory,
        "reports",
        data={"validation": {"files": [str(directory / "validation.jsonl")]}},
        max_steps=4,
    )
    reports = run(recipe)
    trained = [{key for key in report if key.startswith("loss_exit")} for report in reports[:4]]
    # Rotation 2 over layers 0, 1, 2: layer 0 has weight 0 and is not trained.
    assert trained == [{"loss_exit_3", "loss_exit_4"}, {"loss_exit_2", "loss_exit_4"}] * 2
    assert all(f"agreement_exit_{exit_}" in reports[0] for exit_ in (1, 2, 3))
    evaluation = next(report for report in reports if "eval_loss" in report)
    assert evaluation["eval_loss_exit_4"] == pytest.approx(evaluation["eval_loss"], rel=1e-3)
    model = AutoModelForCausalLM.from_pretrained(directory / "reports")
    assert evaluation["eval_agreement_exit_1"] == pytest.approx(agreement(model, recipe), abs=1e-6)


@torch.no_grad()
def agreement(model, recipe_path) -> float:
    """Top-1 agreement of exit 1 with the last layer, with every logit in memory."""
    recipe = load_recipe(recipe_path)
    rows = load_rows(recipe.data.validation, recipe.data, load_tokenizer(recipe.model))
    batch = default_data_collator(list(rows))
    output = model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        output_hidden_states=True,
        use_cache=False,
    )
    is_target = batch["labels"][:, 1:] != -100
    early = model.lm_head(model.model.norm(output.hidden_states[1])).argmax(-1)
    same = early == output.logits.argmax(-1)
    return same[:, :-1][is_target].float().mean().item()


def test_a_killed_run_resumes_with_the_same_results(directory):
    arguments = {"max_steps": 40, "save_strategy": "steps", "save_steps": 3}
    uninterrupted = run(write_recipe(directory, "uninterrupted", **arguments))
    recipe = write_recipe(directory, "killed", **arguments)
    process = subprocess.Popen(
        [LAYERSKIP_VLLM, "train", str(recipe)], env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + START_LIMIT_S
    while not (directory / "killed" / "checkpoint-3" / "trainer_state.json").exists():
        assert process.poll() is None, "training ended before it was killed"
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (directory / "killed" / "model.safetensors").exists()
    assert run(recipe, resume=True)[:-1] == uninterrupted[:-1]
    assert history(recipe)[-1]["train_loss"] != 0


def test_a_folder_with_checkpoints_is_not_overwritten(directory):
    recipe = write_recipe(directory, "kept", max_steps=2, save_strategy="steps", save_steps=1)
    run(recipe)
    with pytest.raises(ValueError, match=r"holds checkpoint-2: continue from it with --resume"):
        run(recipe)


def test_resuming_without_a_checkpoint_is_an_error(directory):
    with pytest.raises(ValueError, match=r"--resume: .*/nothing holds no checkpoint"):
        run(write_recipe(directory, "nothing"), resume=True)
