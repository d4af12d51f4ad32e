"""Draws a sweep as heat maps of the speed-up: a panel per batch size and draft vocabulary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle

from layerskip_vllm.lens.plots import drawable
from layerskip_vllm.lens.text import clip
from layerskip_vllm.sweep.report import pairs_of_row, panel_title
from layerskip_vllm.sweep.summary import Summary

CELL_INCHES = (1.05, 0.62)
PANEL_MARGIN_INCHES = (1.0, 1.3)
MIN_SIZE_INCHES, EDGE_INCHES = (9.0, 5.0), (1.2, 1.4)
MIN_PANEL_INCHES = 5.2
"""Width of a panel's title."""
PAD_INCHES = 0.12
DPI = 150
TITLE_FONT_SIZE, MAX_TITLE_FONT_SIZE = 20, 32
"""At the least width, and at any."""
FONT_SIZE, SMALL_FONT_SIZE, CELL_FONT_SIZE = 14, 11, 15
MAX_LABEL_CHARS = 48
MIN_HALF_RANGE = 0.1
"""Speed-ups closer to 1 than this stay pale."""
SPEEDUPS = LinearSegmentedColormap.from_list(
    "speedups", ["#a84a00", "#f4a259", "#f6f6f4", "#7fb3dc", "#084a91"]
)
"""Orange is slower than plain, blue is faster: those with any colour blindness see it."""
UNKNOWN_COLOUR, BEST_COLOUR = "#dddddd", "#111111"
DARK_BELOW = 0.5
"""Luminance under which a cell's number is white."""


def draw(label: str, summary: Summary, footer: str, path: Path) -> None:
    """Write the PNG.

    Args:
        label: The model's name.
        summary: At least one pair.
        footer: One line: what was measured, and on what.
        path: The PNG file.
    """
    sizes, batches = summary.draft_vocab_sizes, summary.batch_sizes
    width, height = _figure_size(summary)
    layout = ConstrainedLayoutEngine(w_pad=PAD_INCHES, h_pad=PAD_INCHES)
    figure = Figure(figsize=(width, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    figure.suptitle(
        f"{clip(drawable(label), MAX_LABEL_CHARS)}: speed-up over plain vLLM",
        fontsize=min(TITLE_FONT_SIZE * width / MIN_SIZE_INCHES[0], MAX_TITLE_FONT_SIZE),
        fontweight="bold",
        parse_math=False,
    )
    panels = figure.subplots(len(sizes), len(batches), squeeze=False)
    norm = _norm(summary)
    for row, vocab_size in enumerate(sizes):
        for column, batch_size in enumerate(batches):
            _draw_panel(panels[row, column], summary, batch_size, vocab_size, norm)
    bar = figure.colorbar(
        ScalarMappable(norm, SPEEDUPS), ax=panels.ravel().tolist(), aspect=30, pad=0.02
    )
    bar.set_label("speed-up (1 = plain vLLM)", fontsize=FONT_SIZE)
    bar.ax.tick_params(labelsize=SMALL_FONT_SIZE)
    bar.ax.axhline(1, color=BEST_COLOUR, linewidth=1.5)
    bar.outline.set_visible(False)
    figure.supxlabel(
        f"★ best of its batch size.  {drawable(footer)}",
        fontsize=SMALL_FONT_SIZE,
        color="#555555",
        parse_math=False,
    )
    figure.savefig(path, format="png")


def _figure_size(summary: Summary) -> tuple[float, float]:
    panel_width = max(
        len(summary.draft_lengths) * CELL_INCHES[0] + PANEL_MARGIN_INCHES[0], MIN_PANEL_INCHES
    )
    panel_height = len(summary.exit_layers) * CELL_INCHES[1] + PANEL_MARGIN_INCHES[1]
    width = panel_width * len(summary.batch_sizes) + EDGE_INCHES[0]
    height = panel_height * len(summary.draft_vocab_sizes) + EDGE_INCHES[1]
    return max(width, MIN_SIZE_INCHES[0]), max(height, MIN_SIZE_INCHES[1])


def _norm(summary: Summary) -> Normalize:
    """Centre the colours at 1, with the same distance to both ends."""
    cells = [summary.cell(p, size) for p in summary.pairs for size in summary.batch_sizes]
    distances = [abs(cell.speedup.median - 1) for cell in cells if cell is not None]
    half = max(MIN_HALF_RANGE, *distances)
    return Normalize(1 - half, 1 + half)


def _draw_panel(
    axes: Axes, summary: Summary, batch_size: int, vocab_size: int | None, norm: Normalize
) -> None:
    """Draw E downwards and K to the right, as the tables have them."""
    exits, lengths = summary.exit_layers, summary.draft_lengths
    speedups = np.full((len(exits), len(lengths)), np.nan)
    for row, exit_layer in enumerate(exits):
        for column, pair in enumerate(pairs_of_row(summary, exit_layer, vocab_size)):
            cell = summary.cell(pair, batch_size)
            if cell is not None:
                speedups[row, column] = cell.speedup.median
                is_best = pair == summary.best(batch_size)
                _write(axes, row, column, cell.speedup.median, norm, is_best)
    axes.set_facecolor(UNKNOWN_COLOUR)
    axes.imshow(np.ma.masked_invalid(speedups), cmap=SPEEDUPS, norm=norm, aspect="auto")
    axes.set_xticks(range(len(lengths)), labels=[str(k) for k in lengths])
    axes.set_yticks(range(len(exits)), labels=[str(e) for e in exits])
    axes.set_xticks(np.arange(len(lengths) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(exits) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=3)
    axes.tick_params(which="both", length=0, labelsize=FONT_SIZE)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("drafts per step K", fontsize=FONT_SIZE)
    axes.set_ylabel("exit layer E", fontsize=FONT_SIZE)
    axes.set_title(panel_title(summary, batch_size, vocab_size), fontsize=FONT_SIZE, loc="left")


def _write(
    axes: Axes, row: int, column: int, speedup: float, norm: Normalize, is_best: bool
) -> None:
    red, green, blue, _ = SPEEDUPS(norm(speedup))
    is_dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < DARK_BELOW
    axes.text(
        column,
        row,
        f"★ {speedup:.2f}" if is_best else f"{speedup:.2f}",
        ha="center",
        va="center",
        fontsize=CELL_FONT_SIZE,
        fontweight="bold" if is_best else "normal",
        color="white" if is_dark else BEST_COLOUR,
    )
    if is_best:
        frame = Rectangle(
            (column - 0.47, row - 0.45), 0.94, 0.9, fill=False, edgecolor=BEST_COLOUR, linewidth=3
        )
        axes.add_patch(frame)
