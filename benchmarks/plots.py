"""One model's results as one picture."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.result import ModelResult
from benchmarks.step_breakdown import PARTS, REST

SIZE_INCHES, DPI = (16, 14), 110
TITLE_FONT_SIZE, FONT_SIZE, SMALL_FONT_SIZE = 18, 12, 10
COLOURS = {
    "plain": "#777777",
    "self": "#d9600f",
    "self-default": "#1b4f8f",
    "self-auto": "#0f766e",
    "self-recompute": "#e8a87c",
    "self-draft-vocab": "#b03060",
    "draft_model": "#7b3fa0",
    "ngram": "#4d7c0f",
    "transformers": "#222222",
    "transformers-early-exit": "#aa8800",
}
PART_COLOURS = (
    "#08519c", "#3182bd", "#9ecae1",
    "#a63603", "#d94801", "#fdae6b",
    "#31a354", "#756bb1", "#9e9ac8", "#bcbddc", "#dadaeb", "#bbbbbb",
)  # fmt: skip


def draw(result: ModelResult, path: Path) -> None:
    """Write the PNG."""
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{result.name}: {result.description}\n{result.environment.cpu}, "
        f"{result.environment.num_cores} cores, {result.dtype}, E = {result.exit_layer} of "
        f"{result.num_layers}, K = {result.num_speculative_tokens}",
        fontsize=TITLE_FONT_SIZE,
        parse_math=False,
    )
    axes = figure.subplot_mosaic([["speedups", "steps"], ["ideal", "steps"], ["times", "steps"]])
    _draw_speedups(axes["speedups"], result)
    _draw_ideal(axes["ideal"], result)
    _draw_forward_times(axes["times"], result)
    _draw_step_breakdown(axes["steps"], result)
    figure.savefig(path, format="png")


def _draw_speedups(axes: Axes, result: ModelResult) -> None:
    """Speed-up by batch size, one line per system; bars span the quartiles."""
    positions = {batch_size: i for i, batch_size in enumerate(result.batch_sizes)}
    for system in result.systems:
        spreads = [batch.speedup for batch in system.batches]
        medians = [spread.median for spread in spreads]
        axes.errorbar(
            [positions[batch.batch_size] for batch in system.batches],
            medians,
            yerr=[
                [s.median - s.low_quartile for s in spreads],
                [s.high_quartile - s.median for s in spreads],
            ],
            fmt="o-",
            capsize=3,
            color=COLOURS.get(system.name),
            label=system.name,
        )
    axes.set_ylim(bottom=0)
    _label_batches(axes, result)
    _caption(axes, "Output tokens/s over plain's in the same round")
    axes.legend(loc="best", ncols=2, fontsize=SMALL_FONT_SIZE, frameon=False)


def _draw_ideal(axes: Axes, result: ModelResult) -> None:
    """Measured and ideal speed-up at fixed K, side by side."""
    own = result.system("self")
    if not result.ideals or own is None:
        axes.set_axis_off()
        return
    for offset, label, colour, values in (
        (-0.2, "row-aware ideal", "#cccccc", [ideal.speedup for ideal in result.ideals]),
        (0.2, "self", COLOURS["self"], [batch.speedup.median for batch in own.batches]),
    ):
        bars = axes.bar(
            [i + offset for i in range(len(values))], values, width=0.4, color=colour, label=label
        )
        axes.bar_label(bars, fmt="%.2f", fontsize=SMALL_FONT_SIZE)
    axes.axhline(1, color="#555555", linewidth=1, linestyle=":")
    _label_batches(axes, result)
    _caption(axes, "Speed-up over plain at fixed K, and the ideal")
    axes.legend(loc="best", fontsize=SMALL_FONT_SIZE, frameon=False)


def _draw_forward_times(axes: Axes, result: ModelResult) -> None:
    if not result.forward_times:
        axes.set_axis_off()
        return
    rows = list(result.forward_times)
    times = list(result.forward_times.values())
    axes.plot(rows, [1000 * t.layers_s for t in times], "o-", color="#1b4f8f", label="layers")
    axes.plot(rows, [1000 * t.head_s for t in times], "o-", color="#d9600f", label="LM head")
    axes.set_xscale("log", base=2)
    axes.set_xticks(rows, labels=[str(num_rows) for num_rows in rows])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("rows M", fontsize=FONT_SIZE)
    axes.set_ylabel("ms", fontsize=FONT_SIZE)
    _caption(axes, "Plain forward t(M)")
    axes.legend(loc="best", fontsize=SMALL_FONT_SIZE, frameon=False)


def _draw_step_breakdown(axes: Axes, result: ModelResult) -> None:
    """Milliseconds per output token of a request, one bar per system and batch size."""
    bars = [
        (f"{system.name}, {breakdown.batch_size}", breakdown)
        for batch_size in reversed(result.batch_sizes)
        for system in reversed(result.systems)
        for breakdown in system.step_breakdowns
        if breakdown.batch_size == batch_size
    ]
    if not bars:
        axes.set_axis_off()
        return
    labels = [label for label, _ in bars]
    left = [0.0] * len(bars)
    for part, colour in zip([*PARTS, REST], PART_COLOURS, strict=True):
        widths = [
            max(breakdown.parts_ms[part], 0) / breakdown.tokens_per_step for _, breakdown in bars
        ]
        axes.barh(labels, widths, left=left, color=colour, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.margins(y=0.01)
    axes.set_xlabel("ms per output token of a request", fontsize=FONT_SIZE)
    _caption(axes, "Step breakdown (system, batch size)")
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.06),
        ncols=3,
        fontsize=SMALL_FONT_SIZE,
        frameon=False,
    )


def _label_batches(axes: Axes, result: ModelResult) -> None:
    axes.set_xticks(range(len(result.batch_sizes)), labels=[str(b) for b in result.batch_sizes])
    axes.set_xlabel("concurrent requests", fontsize=FONT_SIZE)


def _caption(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=FONT_SIZE, fontweight="bold", loc="left")
    axes.tick_params(labelsize=SMALL_FONT_SIZE)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
