"""Draws the figures of a lens run as one slide: tokens x layers, and curves over the exits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from layerskip_vllm.lens.record import LensRecord
from layerskip_vllm.lens.text import clip, evenly_spaced

SIZE_INCHES, DPI = (16, 9), 120
TITLE_FONT_SIZE, FONT_SIZE, SMALL_FONT_SIZE, CELL_FONT_SIZE = 20, 13, 11, 10
TITLE_LABEL_CHARS, LEGEND_LABEL_CHARS = 50, 40
MAX_LAYER_ROWS = 16
MAX_DRAFT_LENGTHS = 4
"""Most curves of ideal speed-up in one plot."""
ROW_CHARS = 84
"""Characters in a row of cells, over all tokens."""
MIN_CELL_CHARS = 4
"""Narrower cells show only their colour."""
AGREES = LinearSegmentedColormap.from_list("agrees", ["#e3f4e4", "#4fb873"])
DIFFERS = LinearSegmentedColormap.from_list("differs", ["#ffffff", "#b8b8b8"])
MODEL_COLOURS = ("#1b4f8f", "#d9600f", "#7b3fa0", "#4d7c0f")
DRAFT_COLOURS = ("#08306b", "#2171b5", "#6baed6", "#a6bddb")
NO_GLYPH = "▯"


def draw(record: LensRecord, others: Sequence[LensRecord], path: Path) -> None:
    """Write the PNG.

    Args:
        record: The run to draw in full.
        others: Runs whose agreement and perplexity are overlaid.
        path: The PNG file.
    """
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    label = clip(drawable(record.label), TITLE_LABEL_CHARS)
    figure.suptitle(
        f"{label}: predictions of its {record.num_layers} layers",
        fontsize=TITLE_FONT_SIZE,
        fontweight="bold",
        parse_math=False,
    )
    grid = figure.add_gridspec(3, 2, width_ratios=[1.3, 1])
    _draw_window(figure.add_subplot(grid[:, 0]), record)
    _draw_agreement(figure.add_subplot(grid[0, 1]), [record, *others])
    _draw_perplexity(figure.add_subplot(grid[1, 1]), [record, *others])
    _draw_speedup(figure.add_subplot(grid[2, 1]), record)
    figure.savefig(path, format="png")


def _draw_window(axes: Axes, record: LensRecord) -> None:
    """Draw tokens x layers, last layer on top; shade is probability, green means agreement."""
    window = record.window
    num_tokens = len(window.tokens)
    exit_layers = evenly_spaced(1, record.num_layers, MAX_LAYER_ROWS)
    axes.imshow(
        [
            [
                (AGREES if agrees else DIFFERS)(prob)
                for agrees, prob in zip(window.agrees[e - 1], window.top1_probs[e - 1], strict=True)
            ]
            for e in exit_layers
        ],
        aspect="auto",
        origin="lower",
    )
    axes.set_yticks(range(len(exit_layers)), labels=[str(e) for e in exit_layers])
    axes.set_ylabel("exit layer E", fontsize=FONT_SIZE)
    axes.tick_params(length=0, labelsize=SMALL_FONT_SIZE)
    cell_chars = ROW_CHARS // num_tokens
    if cell_chars >= MIN_CELL_CHARS:
        _write_cells(axes, record, exit_layers, cell_chars)
    else:
        axes.set_xticks([])
        axes.set_xlabel(f"the last {num_tokens} tokens", fontsize=FONT_SIZE)
    axes.legend(
        handles=[
            Patch(color=AGREES(0.9), label="same prediction as the last layer"),
            Patch(color=DIFFERS(0.9), label="another prediction"),
            Patch(color="none", label="(darker: more probable)"),
        ],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=3,
        frameon=False,
        fontsize=SMALL_FONT_SIZE,
        borderaxespad=0.2,
    )


def _write_cells(
    axes: Axes, record: LensRecord, exit_layers: Sequence[int], cell_chars: int
) -> None:
    window = record.window
    tokens = [clip(drawable(token), cell_chars) for token in window.tokens]
    axes.set_xticks(range(len(tokens)), labels=tokens, parse_math=False)
    caption = "input token"
    num_prompt_tokens = sum(window.is_prompt)
    if 0 < num_prompt_tokens < len(tokens):
        axes.axvline(num_prompt_tokens - 0.5, color="#333333", linewidth=2)
        caption += ", prompt left of the line"
    axes.set_xlabel(f"{caption}; cells: predicted next token", fontsize=FONT_SIZE)
    for row, exit_layer in enumerate(exit_layers):
        for column, word in enumerate(window.top1[exit_layer - 1]):
            axes.text(
                column,
                row,
                clip(drawable(word), cell_chars),
                ha="center",
                va="center",
                fontsize=CELL_FONT_SIZE,
                color="#10301a" if window.agrees[exit_layer - 1][column] else "#5a5a5a",
                parse_math=False,
            )


def _draw_agreement(axes: Axes, records: Sequence[LensRecord]) -> None:
    for record, colour in zip(records, cycle(MODEL_COLOURS), strict=False):
        exit_layers = [entry.exit_layer for entry in record.exits]
        prompts = [entry.agreement_text for entry in record.exits]
        drafting = [entry.agreement_continuation for entry in record.exits]
        axes.plot(exit_layers, _gaps(prompts), color=colour, linewidth=2.5)
        axes.plot(exit_layers, _gaps(drafting), color=colour, linewidth=1.8, linestyle="--")
    _caption(axes, "Agreement with the last layer's top-1")
    axes.set_ylim(0, 1.04)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.legend(
        handles=[
            Line2D([], [], color="#555555", linestyle="-", label="prompts"),
            Line2D([], [], color="#555555", linestyle="--", label="where it would draft"),
        ],
        loc="upper left",
        frameon=False,
        fontsize=SMALL_FONT_SIZE,
    )


def _draw_perplexity(axes: Axes, records: Sequence[LensRecord]) -> None:
    for record, colour in zip(records, cycle(MODEL_COLOURS), strict=False):
        exit_layers = [entry.exit_layer for entry in record.exits]
        values = _gaps([entry.perplexity for entry in record.exits])
        label = clip(drawable(record.label), LEGEND_LABEL_CHARS)
        axes.plot(exit_layers, values, color=colour, linewidth=2.5, label=label)
    axes.set_yscale("log")
    _caption(axes, "Perplexity of the prompts")
    if len(records) > 1:
        legend = axes.legend(loc="best", frameon=False, fontsize=SMALL_FONT_SIZE)
        for text in legend.get_texts():
            text.set_parse_math(False)


def _draw_speedup(axes: Axes, record: LensRecord) -> None:
    """Draw ideal speed-up over E, one curve per K, with a star at the best pair."""
    caption = "Ideal speed-up"
    axes.axhline(1, color="#999999", linewidth=1.2, linestyle=":")
    for k, colour in zip(_some_draft_lengths(record), DRAFT_COLOURS, strict=False):
        speedups = [record.pair(e, k).ideal_speedup for e in record.exit_layers]
        axes.plot(
            record.exit_layers, _gaps(speedups), ".-", color=colour, linewidth=2, label=f"K={k}"
        )
    if record.best is not None and record.best.ideal_speedup is not None:
        e, k = record.best.exit_layer, record.best.num_speculative_tokens
        speedup = record.best.ideal_speedup
        caption += f"; best: self:{e} with K={k}: {speedup:.2f}"
        axes.plot([e], [speedup], "*", color="#d9600f", markersize=18, zorder=3)
        axes.legend(loc="best", ncols=2, edgecolor="none", fontsize=SMALL_FONT_SIZE)
    axes.set_ylim(0, 1.15 * max(1, *axes.get_ylim()))
    axes.set_xlabel("exit layer E", fontsize=FONT_SIZE)
    _caption(axes, caption)


def _some_draft_lengths(record: LensRecord) -> list[int]:
    """Choose evenly spaced K, and the best pair's K in place of the nearest."""
    every = record.draft_lengths
    some = [every[i] for i in evenly_spaced(0, len(every) - 1, MAX_DRAFT_LENGTHS)]
    if record.best is not None:
        best = record.best.num_speculative_tokens
        nearest = min(some, key=lambda k: abs(k - best))
        some[some.index(nearest)] = best
    return some


def _caption(axes: Axes, text: str) -> None:
    axes.set_title(text, fontsize=FONT_SIZE, fontweight="bold", loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=SMALL_FONT_SIZE)
    axes.grid(color="#e6e6e6")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _gaps(values: Sequence[float | None]) -> list[float]:
    """Turn unknown values into gaps of the curve."""
    return [float("nan") if value is None else value for value in values]


def drawable(text: str) -> str:
    """Replace characters that the plot's font lacks."""
    font = get_font(findfont("DejaVu Sans"))
    return "".join(char if font.get_char_index(ord(char)) else NO_GLYPH for char in text)
