"""Memory of a server's processes, and its growth."""

from __future__ import annotations

import asyncio
import contextlib
import time

import numpy as np
import psutil

SAMPLE_EVERY_S = 2


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants; shared pages count for each."""
    total, parent = 0, psutil.Process(pid)
    for process in (parent, *parent.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


class ResidentMemory:
    """Samples of one server's memory, taken while a soak runs."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._seconds: list[float] = []
        self._bytes: list[int] = []

    async def sample_until(self, deadline: float) -> None:
        """Sample every SAMPLE_EVERY_S seconds until `time.monotonic()` reaches `deadline`."""
        while time.monotonic() < deadline:
            self._seconds.append(time.monotonic())
            self._bytes.append(await asyncio.to_thread(resident_bytes, self._pid))
            await asyncio.sleep(SAMPLE_EVERY_S)

    def slope_mib_per_minute(self, warm_up_s: float) -> float:
        """Least-squares growth after the first `warm_up_s` seconds; 0 if fewer than 3 samples."""
        seconds = np.array(self._seconds) - self._seconds[0]
        late = seconds >= warm_up_s
        if late.sum() < 3:
            return 0.0
        slope, _ = np.polyfit(seconds[late], np.array(self._bytes)[late], 1)
        return float(slope) * 60 / 2**20

    @property
    def last_mib(self) -> float:
        return self._bytes[-1] / 2**20
