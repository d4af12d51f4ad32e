"""The figure of the architecture shows the imports of the code."""

import re

import networkx as nx

from tests.unit.import_graph import FIGURE, import_graph, svg

GRAPH = import_graph()


def test_the_figure_is_up_to_date():
    stale = "run `python -m tests.unit.import_graph`"
    assert FIGURE.read_text(encoding="utf-8") == svg(GRAPH), stale


def test_the_figure_records_every_import():
    recorded = re.findall(r'data-edge="(\w+) (\w+)"', FIGURE.read_text(encoding="utf-8"))
    assert sorted(recorded) == sorted(GRAPH.edges)


def test_imports_point_one_way():
    assert nx.is_directed_acyclic_graph(GRAPH), nx.find_cycle(GRAPH)


def test_an_implied_import_is_drawn_as_such():
    picture = svg(nx.DiGraph([("a", "b"), ("b", "c"), ("a", "c")]))
    assert re.findall(r'data-edge="(\w+) (\w+)" class="implied"', picture) == [("a", "c")]
