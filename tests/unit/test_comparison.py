"""docs/comparison.md and its picture have the figures of the pages that they name."""

import re

import pytest

from benchmarks import gain
from tests.unit.documented import ROOT, figures, figures_of, rows

PAGE = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
MEASURED = PAGE.partition("## Measured here")[2].partition("\n## ")[0]
LINES = rows(MEASURED)
LINK = re.compile(r"\[(.+)\]\((.+)\)")
PICTURE = ROOT / "docs" / "images" / "gain.svg"
SERIES = [series for panel in gain.load() for series in panel.series]


def quoted_figures() -> list[tuple[str, str, str, str]]:
    """(page, source, column, cell) of each cell with figures."""
    found = []
    for line in LINES:
        source, page = LINK.fullmatch(line.cells["Source"]).groups()
        for column, cell in list(line.cells.items())[1:-1]:
            if column != "Over" and cell:
                found.append((f"docs/{page}", source, column, cell))
    return found


def test_every_table_of_measurements_is_read():
    assert len(LINES) == sum(line.count("](") for line in MEASURED.splitlines() if line[:1] == "|")


@pytest.mark.parametrize(("page", "source", "column", "cell"), quoted_figures())
def test_a_quoted_figure_is_in_its_source(page, source, column, cell):
    assert figures(cell)
    assert figures(cell) <= figures_of(page, source, column)


@pytest.mark.parametrize("series", SERIES, ids=lambda series: f"{series.system}, {series.source}")
def test_a_bar_is_a_figure_of_its_source(series):
    for batch_size, speedup in series.speedups.items():
        assert f"{speedup:.2f}" in figures_of(series.page, series.source, batch_size)


def test_the_picture_is_that_of_the_figures(tmp_path):
    gain.draw(gain.load(), tmp_path / "gain.svg")
    assert (tmp_path / "gain.svg").read_bytes() == PICTURE.read_bytes(), (
        "run: python -m benchmarks.gain docs/images/gain.svg"
    )
