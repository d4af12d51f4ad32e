"""Systems are grouped by the memory they need."""

import pytest

from benchmarks.groups import split

SIZES = {"plain": 3, "self": 3, "a": 3, "b": 3, "c": 2, "d": 1}


def test_all_systems_are_one_group_if_they_fit_in_memory():
    assert split(SIZES, 15, ["plain", "self"]) == [["plain", "self", "a", "b", "c", "d"]]


def test_some_systems_are_in_every_group():
    assert split(SIZES, 12, ["plain", "self"]) == [
        ["plain", "self", "a", "b"],
        ["plain", "self", "c", "d"],
    ]


def test_the_reference_alone_is_a_group():
    assert split({"plain": 3}, 4, ["plain", "self"]) == [["plain"]]


def test_a_system_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="b needs"):
        split({"plain": 3 << 20, "b": 9 << 20}, 10 << 20, ["plain"])
