"""Figures of the documentation, found by page, section and row."""

import re
from dataclasses import dataclass

from tests.unit.doc_blocks import ROOT

FIGURE = re.compile(r"(?<![\d.,])\d[\d,]*(?:\.\d+)?(?![\d,]*\.?\d)")
SPREAD = re.compile(r"\[.*?\]|\(.*?\)")
"""Quartiles, ranges and goals in a cell."""
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def figures(text: str) -> set[str]:
    """All numbers in a text, as they are written."""
    return set(FIGURE.findall(text))


def anchor(title: str) -> str:
    """The name that a heading has in a link."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def section(page: str) -> str:
    """The text between a heading and the next one; the page is `docs/NAME.md#anchor`."""
    path, _, name = page.partition("#")
    text = (ROOT / path).read_text(encoding="utf-8")
    headings = list(HEADING.finditer(text))
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    (found,) = [
        text[heading.end() : end]
        for heading, end in zip(headings, ends, strict=True)
        if anchor(heading[1]) == name
    ]
    return found


@dataclass
class Row:
    """One line of a Markdown table, its cells by column."""

    label: str
    cells: dict[str, str]


def rows(text: str) -> list[Row]:
    """All lines of the tables in a text."""
    found, columns = [], None
    for line in text.splitlines():
        if not line.startswith("|"):
            columns = None
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if columns is None:
            columns = [cell.removeprefix("batch ") for cell in cells]
        elif not set(line) <= set("|-: "):
            found.append(Row(cells[0], dict(zip(columns, cells, strict=True))))
    return found


def figures_of(page: str, source: str, column: str) -> set[str]:
    """Medians in one column of the row that a source names, or figures of the sentence it quotes.

    A row has its first cell as name, or its first two: `memory-bound, 1`.
    """
    text = section(page)
    named = [
        row for row in rows(text) if source in {row.label, ", ".join([*row.cells.values()][:2])}
    ]
    if named:
        return set().union(*(figures(SPREAD.sub("", row.cells.get(column, ""))) for row in named))
    assert source in " ".join(text.split()), f"{page} has no row and no sentence {source!r}"
    return figures(source)
