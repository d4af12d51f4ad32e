"""Read which modules the package imports."""

import ast
from pathlib import Path

import layerskip_vllm

PACKAGE = Path(layerskip_vllm.__file__).parent


def imported_names(source: str, package: str) -> set[str]:
    """Return every imported module, and `module.name` for each imported name, at any depth.

    Args:
        source: Source of a module.
        package: The module's package, to resolve relative imports.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = parents[: len(parents) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names
