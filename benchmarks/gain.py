"""The gain over other ways to decode, as one picture for the README.

    python -m benchmarks.gain docs/images/gain.svg

The figures are in `gain.json`. Each series names its page and its row or sentence there;
`tests/unit/test_comparison.py` compares them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

DATA = Path(__file__).with_suffix(".json")

SYSTEMS = {
    "plain": ("plain vLLM", "#8c8c8c"),
    "draft_model": ("vLLM's draft_model", "#e69f00"),
    "ngram": ("vLLM's ngram", "#009e73"),
    "transformers-early-exit": ("transformers' early exit", "#cc79a7"),
    "self": ("self:E, K = 4 fixed", "#56b4e9"),
    "self-default": ("self:E, default settings", "#0072b2"),
    "self-auto": ("self:auto", "#d55e00"),
}
"""Label and colour, in the order of the bars. Colour-blind people can tell these colours apart
(Okabe and Ito's palette)."""

SIZE_INCHES = (8, 6.8)
PNG_DPI = 100
TITLE_SIZE, FONT_SIZE, SMALL_FONT_SIZE = 10, 9, 8
MANY_BARS = 12
"""In a panel with as many, labels of the small size would overlap."""
ROW_HEIGHTS = (1.9, 2.8)
"""The greatest speed-up that a row can show; all panels have the same scale."""
COLUMN_WIDTHS = (1, 1.12)
GAP = 0.8
"""Between the bars of two numbers of requests, in widths of a bar."""
INK, FAINT_INK = "#222222", "#555555"
LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}


@dataclass(frozen=True)
class Series:
    """One system's bars.

    Attributes:
        system: A key of SYSTEMS.
        speedups: Output tokens/s over the baseline's, by the number of concurrent requests.
        page: Page and section of the documentation with the figures.
        source: Row of a table there, or the sentence.
    """

    system: str
    speedups: Mapping[str, float]
    page: str
    source: str


@dataclass(frozen=True)
class Panel:
    """The measurements of one model on one machine.

    Attributes:
        machine: Its hardware.
        subject: The model.
        baseline: The system whose bars are 1.
        note: Missing bars and other remarks.
        series: The other systems.
    """

    machine: str
    subject: str
    baseline: str
    note: str
    series: Sequence[Series]

    @property
    def batch_sizes(self) -> list[str]:
        """Numbers of concurrent requests, in order."""
        return sorted({size for one in self.series for size in one.speedups}, key=int)

    def bars(self, batch_size: str) -> list[tuple[str, float]]:
        """System and speed-up of each bar, the baseline's included, in the order of SYSTEMS."""
        speedups = {
            one.system: one.speedups[batch_size]
            for one in self.series
            if batch_size in one.speedups
        }
        speedups[self.baseline] = 1.0
        return [(system, speedups[system]) for system in SYSTEMS if system in speedups]


def load(path: Path = DATA) -> list[Panel]:
    """Read the figures."""
    panels = json.loads(path.read_text(encoding="utf-8"))["panels"]
    return [
        Panel(**{**panel, "series": [Series(**series) for series in panel["series"]]})
        for panel in panels
    ]


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Write the picture, as SVG or PNG. The same figures give the same bytes."""
    with mpl.rc_context(
        {"svg.hashsalt": "gain", "svg.fonttype": "path", "font.family": "DejaVu Sans"}
    ):
        figure = Figure(figsize=SIZE_INCHES, dpi=PNG_DPI, facecolor="white")
        FigureCanvasAgg(figure)
        grid = figure.add_gridspec(
            len(ROW_HEIGHTS), len(COLUMN_WIDTHS), height_ratios=ROW_HEIGHTS,
            width_ratios=COLUMN_WIDTHS, left=0.07, right=0.97, top=0.8, bottom=0.1, hspace=0.64,
            wspace=0.14,
        )  # fmt: skip
        for panel, (row, column) in zip(panels, np.ndindex(*grid.get_geometry()), strict=True):
            _draw_panel(figure.add_subplot(grid[row, column]), panel, ROW_HEIGHTS[row])
        _draw_heading(figure, panels)
        is_svg = path.suffix == ".svg"
        figure.savefig(path, metadata={"Date": None, "Creator": None} if is_svg else None)


def _draw_heading(figure: Figure, panels: Sequence[Panel]) -> None:
    """The meaning of the bars, and the systems' colours."""
    figure.text(
        0.07,
        0.972,
        "Output tokens/s by concurrent requests; the first bar of each group is 1",
        fontsize=TITLE_SIZE + 1,
        fontweight="bold",
        color=INK,
        va="center",
    )
    drawn = {
        system for panel in panels for size in panel.batch_sizes for system, _ in panel.bars(size)
    }
    figure.legend(
        handles=[
            Patch(color=colour, label=label)
            for system, (label, colour) in SYSTEMS.items()
            if system in drawn
        ],
        loc="upper left",
        bbox_to_anchor=(0.06, 0.957),
        ncols=4,
        fontsize=FONT_SIZE - 0.5,
        frameon=False,
        labelcolor=INK,
        handlelength=1.0,
        columnspacing=1.2,
    )


def _draw_panel(axes: Axes, panel: Panel, max_speedup: float) -> None:
    """Bars of one model on one machine, grouped by the number of requests."""
    position, centres = 0.0, []
    num_bars = sum(len(panel.bars(batch_size)) for batch_size in panel.batch_sizes)
    label_size = SMALL_FONT_SIZE if num_bars < MANY_BARS else SMALL_FONT_SIZE - 2
    for batch_size in panel.batch_sizes:
        bars = panel.bars(batch_size)
        for offset, (system, speedup) in enumerate(bars):
            drawn = axes.bar(position + offset, speedup, width=0.86, color=SYSTEMS[system][1])
            label = f"{speedup:.2f}" if system != panel.baseline else "1"
            axes.bar_label(
                drawn, [label], fontsize=label_size, color=INK, bbox=LABEL_BOX, padding=2
            )
        centres.append(position + (len(bars) - 1) / 2)
        position += len(bars) + GAP
    axes.axhline(1, color=FAINT_INK, linewidth=0.8, linestyle=":", zorder=0)
    axes.set_xticks(centres, labels=panel.batch_sizes, fontsize=FONT_SIZE, color=INK)
    axes.set_xlabel(panel.note, fontsize=SMALL_FONT_SIZE, color=FAINT_INK)
    axes.set_ylim(0, max_speedup)
    ticks = range(int(max_speedup) + 1)
    axes.set_yticks(ticks, labels=[f"{x}x" for x in ticks], fontsize=FONT_SIZE, color=FAINT_INK)
    axes.tick_params(length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    for text, height, size, weight in (
        (panel.machine, 20, TITLE_SIZE, "bold"),
        (panel.subject, 6, FONT_SIZE, "normal"),
    ):
        axes.annotate(text, (0, 1), (0, height), xycoords="axes fraction", fontsize=size,
                      textcoords="offset points", fontweight=weight, color=INK)  # fmt: skip


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path, help="an .svg or .png file")
    draw(load(), parser.parse_args().output)


if __name__ == "__main__":
    main()
