"""Layout of the tests: code shared by several files is in modules without tests."""

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]


def imported_modules(file: Path) -> set[str]:
    """Names that a file's imports may load, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_no_file_imports_from_a_test_file():
    found = {
        f"{file.relative_to(TESTS)}: {name}"
        for file in TESTS.rglob("*.py")
        for name in imported_modules(file)
        if name.startswith("tests.") and any(part.startswith("test_") for part in name.split("."))
    }
    assert found == set()
