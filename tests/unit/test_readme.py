"""Each line of the feature matrix in docs/support.md names tests that exist."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
SUPPORT = (TESTS.parent / "docs" / "support.md").read_text(encoding="utf-8")

MATRIX = SUPPORT.partition("## vLLM's features with `self:E`")[2].partition("\n## ")[0]
LINES = [line for line in MATRIX.splitlines() if line.startswith("| ")][1:]


def named_tests(line: str) -> list[tuple[str, str]]:
    """Return (file, test) pairs; a test without a file is in the previous one, "" means all."""
    named, file = [], ""
    for path, test in re.findall(r"`([\w/]+\.py)?(?:::(\w+))?`", line.rpartition(" | ")[2]):
        file = path or file
        named.append((file, test))
    return named


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split("|")[1].strip())
def test_each_feature_names_existing_tests(line):
    named = named_tests(line)
    assert named
    for file, test in named:
        defined = re.findall(r"^def (test_\w+)\(", (TESTS / file).read_text(encoding="utf-8"), re.M)
        assert (test in defined) if test else defined
