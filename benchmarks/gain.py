"""The gain over plain vLLM beside other ways to decode, as one picture for the README.

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
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

DATA = Path(__file__).with_suffix(".json")

PLAIN = "plain"
SYSTEMS = {
    PLAIN: ("plain vLLM", "#8c8c8c"),
    "draft_model": ("vLLM's draft_model", "#e69f00"),
    "ngram": ("vLLM's ngram", "#009e73"),
    "self": ("self:4", "#56b4e9"),
    "self-auto": ("self:auto", "#d55e00"),
}
"""Label and colour, in the order of the bars. Colour-blind people can tell these colours apart
(Okabe and Ito's palette)."""

SIZE_INCHES = (10.5, 3.0)
PNG_DPI = 100
TITLE_SIZE, FONT_SIZE, SMALL_FONT_SIZE = 11, 10, 7
MAX_SPEEDUP = 2.8
"""All panels have the same scale."""
GAP = 0.8
"""Between the bars of two numbers of requests, in widths of a bar."""
INK, FAINT_INK = "#222222", "#555555"
LABEL_BOX = {"facecolor": "white", "edgecolor": "none", "pad": 0.3}


@dataclass(frozen=True)
class Series:
    """One system's bars.

    Attributes:
        system: A key of SYSTEMS.
        speedups: Output tokens/s over plain vLLM's in the same run, by the number of concurrent
            requests.
        page: Page and section of the documentation with the figures.
        source: Row of a table there, or the sentence.
    """

    system: str
    speedups: Mapping[str, float]
    page: str
    source: str


@dataclass(frozen=True)
class Panel:
    """One run: a model on a machine.

    Attributes:
        machine: Its hardware.
        subject: The model.
        note: What was not run.
        series: The systems, without plain vLLM.
    """

    machine: str
    subject: str
    note: str
    series: Sequence[Series]

    @property
    def batch_sizes(self) -> list[str]:
        """Numbers of concurrent requests, in order."""
        return sorted({size for one in self.series for size in one.speedups}, key=int)

    @property
    def width(self) -> float:
        """Of all bars and gaps, in widths of a bar."""
        return len(self.batch_sizes) * (1 + len(self.series) + GAP)

    def bars(self, batch_size: str) -> list[tuple[str, float]]:
        """System and speed-up of each bar, in the order of SYSTEMS."""
        speedups = {PLAIN: 1.0} | {one.system: one.speedups[batch_size] for one in self.series}
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
            1, len(panels), width_ratios=[panel.width for panel in panels], left=0.035, right=0.99,
            top=0.66, bottom=0.17, wspace=0.1,
        )  # fmt: skip
        for column, panel in enumerate(panels):
            _draw_panel(figure.add_subplot(grid[0, column]), panel)
        _draw_heading(figure, panels)
        is_svg = path.suffix == ".svg"
        figure.savefig(path, metadata={"Date": None, "Creator": None} if is_svg else None)


def _draw_heading(figure: Figure, panels: Sequence[Panel]) -> None:
    """The meaning of the bars, and the systems' colours."""
    title = "Output tokens/s over plain vLLM, by the number of concurrent requests"
    figure.text(
        0.01, 0.95, title, fontsize=TITLE_SIZE + 1, fontweight="bold", color=INK, va="center"
    )
    drawn = {PLAIN} | {one.system for panel in panels for one in panel.series}
    figure.legend(
        handles=[
            Patch(color=colour, label=label)
            for system, (label, colour) in SYSTEMS.items()
            if system in drawn
        ],
        loc="upper left", bbox_to_anchor=(0, 0.93), ncols=len(SYSTEMS), fontsize=FONT_SIZE,
        frameon=False, labelcolor=INK, handlelength=1.0, columnspacing=1.4,
    )  # fmt: skip


def _draw_panel(axes: Axes, panel: Panel) -> None:
    """Bars of one run, grouped by the number of requests."""
    position, centres = 0.0, []
    for batch_size in panel.batch_sizes:
        bars = panel.bars(batch_size)
        for offset, (system, speedup) in enumerate(bars):
            drawn = axes.bar(position + offset, speedup, width=0.86, color=SYSTEMS[system][1])
            label = f"{speedup:.2f}" if system != PLAIN else "1"
            axes.bar_label(
                drawn, [label], fontsize=SMALL_FONT_SIZE, color=INK, bbox=LABEL_BOX, padding=2
            )
        centres.append(position + (len(bars) - 1) / 2)
        position += len(bars) + GAP
    axes.axhline(1, color=FAINT_INK, linewidth=0.8, linestyle=":", zorder=0)
    axes.set_xticks(centres, labels=panel.batch_sizes, fontsize=FONT_SIZE, color=INK)
    axes.set_xlabel(panel.note, fontsize=SMALL_FONT_SIZE + 1.5, color=FAINT_INK)
    axes.set_xlim(-0.7, position - GAP - 0.3)
    axes.set_ylim(0, MAX_SPEEDUP)
    ticks = range(int(MAX_SPEEDUP) + 1)
    axes.set_yticks(ticks, labels=[f"{x}x" for x in ticks], fontsize=FONT_SIZE, color=FAINT_INK)
    axes.tick_params(length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    for text, height, size, weight in (
        (panel.machine, 17, TITLE_SIZE, "bold"),
        (panel.subject, 4, FONT_SIZE - 0.5, "normal"),
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
