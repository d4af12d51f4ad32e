"""The model card: what a checkpoint was trained on, how, and what its exits are worth."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from huggingface_hub import ModelCard, ModelCardData
from matplotlib.figure import Figure

from layerskip_vllm.checkpoint.settings import CheckpointSettings
from layerskip_vllm.lens.lens import Lens
from layerskip_vllm.lens.text import evenly_spaced
from layerskip_vllm.training.recipe import DataSource, Recipe
from layerskip_vllm.training.replayed import DRAFT_LENGTHS

CURVES_FILE = "training.png"

MAX_CURVES = 6
"""Exits whose curves are drawn."""


def write_card(
    folder: Path,
    recipe: Recipe,
    history: Sequence[Mapping[str, float]],
    num_layers: int,
    lens: Lens | None,
    settings: CheckpointSettings | None,
) -> None:
    """Write README.md and the curves beside the weights.

    Args:
        folder: The checkpoint.
        recipe: Its recipe.
        history: The trainer's reports, each with every exit, or none.
        num_layers: L.
        lens: Of held-out prompts; None: there were none.
        settings: The best exits; None: not known.
    """
    draw_curves(history, num_layers, folder / CURVES_FILE)
    data = ModelCardData(tags=["layerskip", "early-exit"], library_name="transformers")
    sections = [
        f"---\n{data.to_yaml()}\n---",
        "# A LayerSkip checkpoint",
        "Its early layers predict too, so vLLM can draft with them and verify with the rest: "
        "the output stays the full model's.",
        _serving(settings),
        *_figures(lens, settings),
        "## Training",
        f"![Loss of the exits over the steps]({CURVES_FILE})",
        f"Data: {_source(recipe.data.train)}. Held out: {_source(recipe.data.validation)}.",
        f"    {shlex.join(['layerskip-vllm', *sys.argv[1:]])}",
        f"```yaml\n{yaml.safe_dump(recipe.model_dump(exclude_unset=True), sort_keys=False)}```",
    ]
    ModelCard("\n\n".join(sections) + "\n").save(folder / "README.md")


def draw_curves(history: Sequence[Mapping[str, float]], num_layers: int, file: Path) -> None:
    """Draw the loss of up to six exits over the steps, the last exit among them."""
    reports = [report for report in history if "loss" in report]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="cross entropy, nats per token")
    steps = [report["step"] for report in reports]
    for exit_layer in evenly_spaced(1, num_layers, MAX_CURVES):
        # Missing where the report's rows had no target.
        losses = [report.get(f"loss_exit_{exit_layer}", math.nan) for report in reports]
        axes.plot(steps, losses, label=f"exit {exit_layer}")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def _serving(settings: CheckpointSettings | None) -> str:
    exit_layer = settings.exit_layers[0] if settings is not None else None
    command = "    vllm serve . --speculative-model self:auto"
    if exit_layer is None:
        return command
    return f"{command}\n\n`self:auto` starts from exit {exit_layer}, as `config.json` says."


def _figures(lens: Lens | None, settings: CheckpointSettings | None) -> list[str]:
    if lens is None or settings is None:
        return []
    header = " | ".join(f"K = {k}" for k in DRAFT_LENGTHS)
    rows = []
    for exit_layer in settings.exit_layers:
        lengths = [lens.expect(exit_layer, k).counts.mean_acceptance_length for k in DRAFT_LENGTHS]
        cells = " | ".join("-" if length is None else f"{length:.2f}" for length in lengths)
        rows.append(f"| {exit_layer} | {cells} |")
    return [
        "## Exits",
        f"Tokens per cycle, by exact replay of {len(lens.traces)} held-out prompts, greedy:",
        "\n".join([f"| exit | {header} |", f"|---|{'---:|' * len(DRAFT_LENGTHS)}", *rows]),
    ]


def _source(source: DataSource | None) -> str:
    if source is None:
        return "nothing"
    return ", ".join(source.files) if source.files else f"{source.dataset}, split {source.split}"
