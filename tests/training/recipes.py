"""Recipes that take seconds: a tiny Llama from scratch on a few hundred lines of text."""

import json
import os
import subprocess
from pathlib import Path

import yaml

from layerskip_vllm.training.recipe import load_recipe
from layerskip_vllm.training.run import (
    load_model,
    load_tokenizer,
    make_trainer,
    set_seed,
    train,
    training_arguments,
)
from layerskip_vllm.training.trainer import LayerSkipTrainer
from tests.models import byte_tokenizer


def write_data(directory: Path) -> None:
    """Write the tokenizer and 200 documents of regular text."""
    byte_tokenizer().save_pretrained(directory / "tokenizer")
    documents = [f"{n} times {n + 1} is {n * (n + 1)}\n" * 3 for n in range(200)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
    (directory / "train.jsonl").write_text(lines)
    (directory / "validation.jsonl").write_text(lines[:3000].rpartition("\n")[0])


def write_recipe(directory: Path, name: str = "run", **trainer: object) -> Path:
    """Write a recipe; the keywords `layerskip` and `data` update those sections."""
    layerskip, data = trainer.pop("layerskip", {}), trainer.pop("data", {})
    recipe = {
        "model": {
            "config": {
                "model_type": "llama",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 4,
                "num_attention_heads": 2,
                "max_position_embeddings": 64,
                "initializer_range": 0.1,
            },
            "tokenizer": str(directory / "tokenizer"),
        },
        "layerskip": {"p_max": 0.5, "e_scale": 1.0, "curriculum": "rotational", "rotation": 2}
        | layerskip,
        "data": {"train": {"files": [str(directory / "train.jsonl")]}, "sequence_length": 32}
        | data,
        "trainer": {
            "output_dir": str(directory / name),
            "max_steps": 8,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "disable_tqdm": True,
            "seed": 3,
        }
        | trainer,
    }
    path = directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def built(recipe_path: Path, chat_template: str | None = None) -> LayerSkipTrainer:
    """The trainer of a recipe, before it trains."""
    recipe = load_recipe(recipe_path)
    args = training_arguments(recipe)
    set_seed(args.seed)
    tokenizer = load_tokenizer(recipe.model)
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    return make_trainer(recipe, args, load_model(recipe.model, tokenizer), tokenizer)


def run(recipe: Path, resume: bool = False) -> list[dict[str, float]]:
    """Train in this process; returns the log."""
    train(load_recipe(recipe), resume)
    return history(recipe)


def run_command(recipe: Path, *command: str) -> list[dict[str, float]]:
    """Train in separate processes; returns the log."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, str(recipe)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return history(recipe)


def history(recipe: Path) -> list[dict[str, float]]:
    """The reports in the Trainer's log of a finished run, without timings."""
    output = Path(yaml.safe_load(recipe.read_text())["trainer"]["output_dir"])
    reports = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [
        {key: value for key, value in report.items() if "runtime" not in key and "per_s" not in key}
        for report in reports
    ]


def curve(reports: list[dict[str, float]], name: str = "loss") -> list[float]:
    """One figure over the steps that report it."""
    return [report[name] for report in reports if name in report]
