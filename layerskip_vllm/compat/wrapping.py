"""Wrap a method of a host class, or a function of a host module, once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import ModuleType

OWNER_ATTRIBUTE = "__layerskip_hook__"


def wrap(host: type | ModuleType, name: str, wrapper: Callable) -> None:
    """Replace `host.name` by `wrapper(original, ...)`; do nothing if we have wrapped it before.

    Args:
        host: Class or module that defines `name`, as a method, static method or function.
        name: Attribute to wrap.
        wrapper: Called with the original as first argument, then the call's own.
    """
    static = inspect.getattr_static(host, name)
    original = static.__func__ if isinstance(static, staticmethod) else static
    if hasattr(original, OWNER_ATTRIBUTE):
        return

    @functools.wraps(original)
    def replacement(*args, **kwargs):  # type: ignore[no-untyped-def]
        return wrapper(original, *args, **kwargs)

    setattr(replacement, OWNER_ATTRIBUTE, wrapper)
    setattr(
        host, name, staticmethod(replacement) if isinstance(static, staticmethod) else replacement
    )
