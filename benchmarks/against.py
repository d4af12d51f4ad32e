"""Measure another checkout's package with this checkout's benchmarks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks.environment import REPOSITORY
from benchmarks.systems import System

PACKAGE = "layerskip_vllm"

DRIVERS = "measure"
"""The package's measuring part, always taken from this checkout."""

OTHER = "@other"
"""Suffix of systems that run another checkout's package."""


def with_other(
    systems: Mapping[str, System], checkout: Path | None, folder: Path
) -> dict[str, System]:
    """Add a copy of each self-speculating system that runs another checkout's package.

    Args:
        systems: By name.
        checkout: Contains the package; None adds nothing.
        folder: As for `package_variables`.
    """
    if checkout is None:
        return dict(systems)
    variables = package_variables(checkout, folder)
    found = {}
    for name, system in systems.items():
        found[name] = system
        if name.startswith("self"):
            label = name + OTHER
            found[label] = replace(system, name=label, variables=variables)
    return found


def package_variables(checkout: Path, folder: Path) -> dict[str, str]:
    """Environment variables that make a child import another checkout's package.

    Args:
        checkout: Contains the package.
        folder: Where a folder of links to it goes. Use the same one for every child: the compile
            cache's key contains the paths of source files.

    Raises:
        FileNotFoundError: The checkout does not contain the package.
    """
    source = checkout.resolve() / PACKAGE
    if not (source / "__init__.py").exists():
        raise FileNotFoundError(f"{checkout} is not a checkout: {source}/__init__.py is missing")
    links = folder.resolve() / "against" / PACKAGE
    shutil.rmtree(links, ignore_errors=True)
    links.mkdir(parents=True)
    for path in source.iterdir():
        if path.name not in (DRIVERS, "__pycache__"):
            (links / path.name).symlink_to(path)
    (links / DRIVERS).symlink_to(REPOSITORY / PACKAGE / DRIVERS)
    inherited = os.environ.get("PYTHONPATH")
    folders = [str(links.parent), str(REPOSITORY), *([inherited] if inherited else [])]
    return {
        "PYTHONPATH": ":".join(folders),
        # `python -m` puts the working directory first, which may contain the package too.
        "PYTHONSAFEPATH": "1",
    }
