"""Each line of the README's feature matrix names tests that are there."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
README = (TESTS.parent / "README.md").read_text(encoding="utf-8")

MATRIX = README.partition("### vLLM's features beside `self:E`")[2].partition("\n## ")[0]
LINES = [line for line in MATRIX.splitlines() if line.startswith("| ")][1:]


def named_tests(line: str) -> list[tuple[str, str]]:
    """(file, test) of a line; a test without a file is in the file before it, "" is all of one."""
    named, file = [], ""
    for path, test in re.findall(r"`([\w/]+\.py)?(?:::(\w+))?`", line.rpartition(" | ")[2]):
        file = path or file
        named.append((file, test))
    return named


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split("|")[1].strip())
def test_a_line_of_the_matrix_is_tested(line):
    named = named_tests(line)
    assert named
    for file, test in named:
        defined = re.findall(r"^def (test_\w+)\(", (TESTS / file).read_text(encoding="utf-8"), re.M)
        assert (test in defined) if test else defined
