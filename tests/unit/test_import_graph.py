"""The figure of the architecture shows the imports of the code."""

import re

from tests.unit.import_graph import FIGURE, direct_edges, import_graph, reachable, svg

GRAPH = import_graph()


def test_the_figure_is_up_to_date():
    stale = "run `python -m tests.unit.import_graph`"
    assert FIGURE.read_text(encoding="utf-8") == svg(GRAPH), stale


def test_the_figure_records_every_import():
    recorded = re.findall(r'data-edge="(\w+) (\w+)"', FIGURE.read_text(encoding="utf-8"))
    assert sorted(recorded) == sorted((part, to) for part in GRAPH for to in GRAPH[part])


def test_imports_point_one_way():
    assert [part for part in GRAPH if part in reachable(GRAPH, part)] == []


def test_an_implied_import_is_not_direct():
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert direct_edges(graph) == {("a", "b"), ("b", "c")}


def test_a_cycle_is_found():
    graph = {"a": {"b"}, "b": {"a"}}
    assert "a" in reachable(graph, "a")
