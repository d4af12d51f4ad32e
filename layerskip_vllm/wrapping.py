"""Wrap a method of a host class once, however often it is asked for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

OWNER_ATTRIBUTE = "__layerskip_hook__"


def wrap(host: type, name: str, wrapper: Callable) -> None:
    """Replace `host.name` by `wrapper(original, ...)`; nothing happens where it is ours already.

    Args:
        host: Class that defines `name`, as a method or a static method.
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
