"""Whole runs on a tiny model: equivalences, reports and resuming."""

import collections
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, Trainer

from layerskip_vllm.training.recipe import load_recipe
from layerskip_vllm.training.run import load_model, set_seed
from tests.models import byte_tokenizer
from tests.training.recipes import built, curve, run, write_recipe


@pytest.fixture(scope="module")
def reference(directory):
    """Recipe and log of the run that others are compared with."""
    recipe = write_recipe(directory, "reference")
    return recipe, run(recipe)


def weights(recipe) -> dict[str, torch.Tensor]:
    return load_file(Path(load_recipe(recipe).trainer.output_dir) / "model.safetensors")


def plain_trainer(recipe_path) -> Trainer:
    """transformers' own Trainer on the same model, data and arguments."""
    recipe, ours = load_recipe(recipe_path), built(recipe_path)
    set_seed(ours.args.seed)
    model = load_model(recipe.model, ours.processing_class)
    ours.args.remove_unused_columns = False  # the collator's
    return Trainer(
        model, ours.args, train_dataset=ours.train_dataset, data_collator=ours.data_collator
    )


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
    for report in reports[:4]:
        for exit_ in (1, 2, 3, 4):
            assert report[f"loss_exit_{exit_}"] > 0
        assert all(0 <= report[f"agreement_exit_{exit_}"] <= 1 for exit_ in (1, 2, 3))
    evaluation = next(report for report in reports if "eval_loss" in report)
    assert evaluation["eval_loss_exit_4"] == evaluation["eval_loss"]
    model = AutoModelForCausalLM.from_pretrained(directory / "reports")
    assert evaluation["eval_agreement_exit_1"] == pytest.approx(agreement(model, recipe), abs=1e-6)


@torch.no_grad()
def agreement(model, recipe_path) -> float:
    """Top-1 agreement of exit 1 with the last layer, with every logit in memory."""
    trainer = built(recipe_path)
    batch = trainer.data_collator(list(trainer.eval_dataset))
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


def test_a_folder_with_checkpoints_is_not_overwritten(directory):
    recipe = write_recipe(directory, "kept", max_steps=2, save_strategy="steps", save_steps=1)
    run(recipe)
    with pytest.raises(ValueError, match=r"holds checkpoint-2: continue from it with --resume"):
        run(recipe)


def test_resuming_without_a_checkpoint_is_an_error(directory):
    with pytest.raises(ValueError, match=r"--resume: .*/nothing holds no checkpoint"):
        run(write_recipe(directory, "nothing"), resume=True)


@pytest.mark.parametrize(
    "logging",
    [
        {"logging_strategy": "epoch", "num_train_epochs": 2, "max_steps": -1},
        {"logging_first_step": True, "logging_steps": 3, "max_steps": 7},
        {"logging_steps": 5, "num_train_epochs": 1.5, "max_steps": -1},
    ],
    ids=["epoch", "first step", "between steps"],
)
def test_every_report_has_every_exit(directory, logging, request):
    recipe = write_recipe(directory, f"logging {request.node.callspec.id}", **logging)
    reports = [report for report in run(recipe) if "loss" in report]
    assert reports
    for report in reports:
        assert {f"loss_exit_{e}" for e in (1, 2, 3, 4)} <= set(report)
        assert {f"agreement_exit_{e}" for e in (1, 2, 3)} <= set(report)


def test_flash_attention_is_refused(directory, monkeypatch):
    """It is not installed here, so that the model is only said to use it."""

    def load(*args):
        model = load_model(*args)
        model.config._attn_implementation = "flash_attention_2"
        return model

    monkeypatch.setattr("tests.training.recipes.load_model", load)
    with pytest.raises(ValueError, match="would mix the documents of a packed row"):
        built(write_recipe(directory, "flash"))


def test_rows_without_targets_leave_all_weights_finite(directory):
    """Cut after "ab", the end-of-text token is alone in its row: no target, and once 0 / 0."""
    (directory / "short.jsonl").write_text('{"text": "ab"}\n' * 40)
    short = {"files": [str(directory / "short.jsonl")]}
    recipe = write_recipe(
        directory,
        "short",
        data={"train": short, "validation": short, "sequence_length": 2},
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        max_steps=3,
        eval_strategy="steps",
        eval_steps=1,
    )
    reports = run(recipe)
    assert all(tensor.isfinite().all() for tensor in weights(recipe).values())
    assert all(math.isfinite(value) for report in reports for value in report.values())


@pytest.mark.parametrize(
    ("rule", "option", "begins"),
    [
        (True, "auto", True),
        (True, "never", False),
        (False, "auto", False),
        (False, "always", True),
    ],
)
def test_documents_begin_as_the_tokenizer_or_the_recipe_says(directory, rule, option, begins):
    name = f"bos {rule} {option}"
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    if rule:
        bos = ("<|begin|>", tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|begin|> $A", special_tokens=[bos]
        )
    tokenizer.save_pretrained(directory / name)
    recipe = write_recipe(directory, name, data={"beginning_of_text": option})
    text = recipe.read_text().replace(str(directory / "tokenizer"), str(directory / name))
    recipe.write_text(text)
    trainer = built(recipe)
    first = {
        row["input_ids"][begin]
        for row in trainer.train_dataset
        for begin in [0, *itertools.accumulate(row["seq_lengths"][:-1])]
        if row["input_ids"][begin : begin + 2][-1] < 256  # not a later part of a document
    }
    assert (tokenizer.bos_token_id in first) == begins


@pytest.mark.parametrize("added", ["<|pad|>", "another"])
def test_tokens_without_a_row_of_the_embedding_are_refused(directory, added):
    tokenizer = byte_tokenizer()
    if added == "<|pad|>":
        tokenizer.add_special_tokens({"pad_token": added})
    else:
        tokenizer.add_tokens([added])
    tokenizer.save_pretrained(directory / added)
    recipe = write_recipe(directory, f"tokens {added}")
    text = recipe.read_text().replace(str(directory / "tokenizer"), str(directory / added))
    recipe.write_text(text.replace("hidden_size: 32", "hidden_size: 32\n    vocab_size: 257"))
    with pytest.raises(
        ValueError, match="tokens up to 257, but the model's embedding has 257 rows"
    ):
        run(recipe)


def test_other_special_tokens_than_the_checkpoints_are_a_warning(directory, caplog):
    """As where an instruction-tuned tokenizer is given to its base model."""
    recipe = write_recipe(directory, "special", max_steps=1)
    text = recipe.read_text()
    recipe.write_text(text.replace("hidden_size: 32", "hidden_size: 32\n    eos_token_id: 7"))
    run(recipe)
    assert "eos_token_id: [7] in config.json, 256 of the tokenizer" in caplog.text
    assert "bos_token_id" not in caplog.text


def test_a_model_with_scaled_logits_trains_and_evaluates(directory):
    validation = {"files": [str(directory / "validation.jsonl")]}
    recipe = write_recipe(directory, "granite", data={"validation": validation}, max_steps=2)
    scaled = "model_type: granite\n    logits_scaling: 8.0"
    recipe.write_text(recipe.read_text().replace("model_type: llama", scaled))
    reports = run(recipe)
    assert curve(reports, "eval_loss_exit_4")
    assert not curve(reports, "eval_acceptance_length_exit_1")


def test_the_tokens_of_the_targets_are_counted(directory):
    """All but the first token of each part of a document, in one pass."""
    recipe = write_recipe(directory, "counted", num_train_epochs=1, max_steps=-1)
    run(recipe)
    counts = json.loads((directory / "counted" / "token_counts.json").read_text())
    trainer = built(recipe)
    expected = collections.Counter(
        label for row in trainer.train_dataset for label in row["labels"]
    )
    firsts = collections.Counter(
        row["labels"][begin]
        for row in trainer.train_dataset
        for begin in [0, *itertools.accumulate(row["seq_lengths"][:-1])]
    )
    assert counts == {str(token): n for token, n in (expected - firsts).items()}
