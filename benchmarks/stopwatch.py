"""Time spent in methods of live objects; each second counts once, for the innermost call."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager

Path = tuple[str, ...]
"""Labels from the outermost timed call to the innermost."""

Method = tuple[object, str, str]
"""Owner, name, and label of a method."""


@contextmanager
def replaced(methods: Iterable[Method], wrapper: Callable) -> Generator[None]:
    """Put `wrapper(method, label)` in the place of methods of live objects."""
    owners = []
    try:
        for owner, name, label in methods:
            setattr(owner, name, wrapper(getattr(owner, name), label))
            owners.append((owner, name))
        yield
    finally:
        for owner, name in reversed(owners):
            delattr(owner, name)


class Stopwatch:
    """Seconds by path, without the timed calls inside.

    If `forward` calls `early`, ("forward",) excludes the time of `early`. The sum over all paths is
    the total time in timed calls.
    """

    def __init__(self) -> None:
        self.seconds: dict[Path, float] = defaultdict(float)
        self._path: list[str] = []
        self._inner_s: list[float] = [0.0]

    def take(self) -> dict[Path, float]:
        """Return the seconds since the last call of this method."""
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken

    @contextmanager
    def timing(self, methods: Iterable[Method]) -> Generator[None]:
        """Time methods while the block runs.

        Args:
            methods: (object, method name, label) of each.
        """
        with replaced(methods, self._timed):
            yield

    def _timed(self, method, label: str):  # type: ignore[no-untyped-def]
        @functools.wraps(method)
        def timed(*args, **kwargs):  # type: ignore[no-untyped-def]
            self._path.append(label)
            self._inner_s.append(0.0)
            started = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - started
                self.seconds[tuple(self._path)] += elapsed - self._inner_s.pop()
                self._inner_s[-1] += elapsed
                self._path.pop()

        return timed
