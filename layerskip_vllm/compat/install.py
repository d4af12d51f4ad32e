"""Find the hooks of a folder of `compat/` and install those that this vLLM needs."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Protocol, cast


class Hook(Protocol):
    """What the module of a hook defines."""

    def is_needed(self) -> bool:
        """Whether this vLLM lacks what the hook adds."""

    def install(self) -> None:
        """Install the hook; a second call changes nothing."""


def hooks_of(folder: ModuleType) -> Iterator[Hook]:
    """Import and yield each hook of `compat.every_process` or `compat.worker`, sorted by name."""
    for module in pkgutil.iter_modules(folder.__path__):
        yield cast(Hook, importlib.import_module(f"{folder.__name__}.{module.name}"))


def install_hooks(folder: ModuleType) -> None:
    """Install those hooks of a folder that this vLLM needs. May run often."""
    for hook in hooks_of(folder):
        if hook.is_needed():
            hook.install()
