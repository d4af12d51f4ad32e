"""Draw the imports between the parts of the package: `python -m tests.unit.import_graph`.

Writes docs/figures/imports.svg. A unit test fails if it is stale. A part is a subpackage, or a
module at the root. Imports inside functions and under TYPE_CHECKING count, and the commands of
`cli.py`. Other modules that are named in strings do not, such as worker classes.
"""

from html import escape
from pathlib import Path

import networkx as nx

from layerskip_vllm.cli import COMMANDS
from tests.unit.imports import PACKAGE, imported_names

FIGURE = Path(__file__).parents[2] / "docs" / "figures" / "imports.svg"

LEFT_OUT = {"__init__", "version"}
"""They hold a few names, which any part may use."""

BOX_WIDTH, BOX_HEIGHT, GAP, ROW_HEIGHT, MARGIN = 118, 34, 22, 92, 20  # pixels
STYLE = """
  text { font: 14px sans-serif; text-anchor: middle; dominant-baseline: central; fill: #1a237e }
  rect { fill: #e8eaf6; stroke: #3f51b5 }
  path { fill: none; stroke: #3f51b5; stroke-width: 1.6; marker-end: url(#arrow) }
  path.implied { stroke: #b0bec5; stroke-width: 1; marker-end: none }
"""


def import_graph() -> nx.DiGraph:
    """An edge leads from a part to one that it imports."""
    graph: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        part = part_of(path.relative_to(PACKAGE).with_suffix("").parts)
        folder = ".".join(path.relative_to(PACKAGE.parent).parent.parts)
        names = imported_names(path.read_text(encoding="utf-8"), folder)
        ours = {tuple(name.split(".")[1:]) for name in names if name.startswith("layerskip_vllm.")}
        graph.setdefault(part, set()).update(map(part_of, ours))
    graph["cli"] |= {module.split(".")[1] for module, _ in COMMANDS.values()}
    parts = graph.keys() - LEFT_OUT
    return nx.DiGraph({part: sorted((graph[part] & parts) - {part}) for part in sorted(parts)})


def part_of(names: tuple[str, ...]) -> str:
    return names[0]


def rows_of(graph: nx.DiGraph) -> list[list[str]]:
    """The parts by the longest chain of imports above them, each row near those that import it."""
    place: dict[str, float] = {}
    rows = []
    for generation in nx.topological_generations(graph):
        row = sorted(generation, key=lambda part: (barycentre(graph, part, place), part))
        place |= {part: (index + 0.5) / len(row) for index, part in enumerate(row)}
        rows.append(row)
    return rows


def barycentre(graph: nx.DiGraph, part: str, place: dict[str, float]) -> float:
    above = [place[other] for other in graph.predecessors(part)]
    return sum(above) / len(above) if above else 0.5


def svg(graph: nx.DiGraph) -> str:
    """The graph as a picture: implied imports are thin and grey."""
    rows = rows_of(graph)
    width = max(map(len, rows)) * (BOX_WIDTH + GAP) - GAP + 2 * MARGIN
    height = (len(rows) - 1) * ROW_HEIGHT + BOX_HEIGHT + 2 * MARGIN
    centres = {
        part: (round(width * (column + 0.5) / len(row)), MARGIN + BOX_HEIGHT // 2 + y * ROW_HEIGHT)
        for y, row in enumerate(rows)
        for column, part in enumerate(row)
    }
    direct = nx.transitive_reduction(graph).edges
    edges = sorted(graph.edges, key=lambda edge: (edge in direct, edge))
    lines = [edge_path(edge, centres, is_direct=edge in direct) for edge in edges]
    lines += [box(part, *centre) for part, centre in sorted(centres.items())]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
            f"<style>{STYLE}</style>",
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7"'
            ' markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" style="fill: #3f51b5;'
            ' stroke: none; marker-end: none"/></marker></defs>',
            *lines,
            "</svg>\n",
        ]
    )


def edge_path(
    edge: tuple[str, str], centres: dict[str, tuple[int, int]], *, is_direct: bool
) -> str:
    (x, y), (to_x, to_y) = (centres[part] for part in edge)
    y, to_y = y + BOX_HEIGHT // 2, to_y - BOX_HEIGHT // 2
    bend = (to_y - y) // 2
    name = f'data-edge="{edge[0]} {edge[1]}"'
    style = "" if is_direct else ' class="implied"'
    return f'<path {name}{style} d="M{x} {y}C{x} {y + bend} {to_x} {to_y - bend} {to_x} {to_y}"/>'


def box(part: str, x: int, y: int) -> str:
    left, top = x - BOX_WIDTH // 2, y - BOX_HEIGHT // 2
    return (
        f'<rect x="{left}" y="{top}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="4"/>'
        f'<text x="{x}" y="{y}">{escape(label(part))}</text>'
    )


def label(part: str) -> str:
    return f"{part}/" if (PACKAGE / part).is_dir() else f"{part}.py"


if __name__ == "__main__":
    FIGURE.write_text(svg(import_graph()), encoding="utf-8")
