"""Draw the training curves of the 10M example and its twin, and print their figures per exit.

    python examples/python_10m/figures.py build/python_10m examples/checkpoints/layerskip-python-10m

It reads `layerskip/trainer_state.json` and `twin/trainer_state.json` of `layerskip-vllm train` in
the first folder, and writes `curves.png` into the second.
"""

import json
import sys
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

TOKENS_PER_STEP = 8 * 256
EXIT_LAYER, NUM_LAYERS = 4, 12
RUNS = {"layerskip": ("LayerSkip", "tab:blue"), "twin": ("twin, without", "tab:orange")}


def evaluations(run: Path) -> list[dict[str, float]]:
    """Return the held-out evaluations of a run, in order, one per step."""
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return list({report["step"]: report for report in history if "eval_loss" in report}.values())


def draw(folder: Path, path: Path) -> None:
    """Draw held-out loss and agreement by training tokens."""
    figure, (loss, agreement) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for name, (label, color) in RUNS.items():
        reports = evaluations(folder / name)
        tokens = [report["step"] * TOKENS_PER_STEP / 1e6 for report in reports]
        for axes, figure_name, style, subject in (
            (loss, f"eval_loss_exit_{NUM_LAYERS}", "-", "all 12 layers"),
            (loss, f"eval_loss_exit_{EXIT_LAYER}", "--", "exit 4"),
            (agreement, f"eval_agreement_exit_{EXIT_LAYER}", "-", "exit 4 with layer 12"),
        ):
            values = [report[figure_name] for report in reports]
            axes.plot(tokens, values, style, color=color, label=f"{label}: {subject}")
    loss.set(title="Held-out loss", xlabel="million tokens", ylabel="nats per token")
    agreement.set(title="Top-1 agreement, held out", xlabel="million tokens", ylim=(0, 1))
    for axes in (loss, agreement):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=130)


def table(folder: Path) -> str:
    """Return the last evaluations as a Markdown table, one exit per row."""
    ours, twin = (evaluations(folder / name)[-1] for name in RUNS)
    rows = [
        "| Exit E | held-out loss | agreement with layer 12 | twin's loss | twin's agreement |",
        "|---:|---:|---:|---:|---:|",
    ]
    for exit_ in range(1, NUM_LAYERS + 1):
        cells = [str(exit_)]
        for report in (ours, twin):
            agreement = report.get(f"eval_agreement_exit_{exit_}", 1.0)
            cells += [f"{report[f'eval_loss_exit_{exit_}']:.3f}", f"{agreement:.3f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    draw(source, target / "curves.png")
    print(table(source))
