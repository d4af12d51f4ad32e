"""Memory of this process, as Linux reports it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Write it to clear_refs to set the peak to the current size (proc_pid_clear_refs(5))."""


@dataclass(frozen=True)
class Memory:
    """A process's memory.

    Attributes:
        peak_rss_bytes: Peak resident size since the start, or since the last reset.
        anonymous_bytes: Resident now and backed by no file: weights, KV cache, buffers. Loading
            maps the checkpoint's file, so the peak counts the weights twice; this does not.
    """

    peak_rss_bytes: int
    anonymous_bytes: int

    @classmethod
    def read(cls) -> Memory:
        """Read this process's memory."""
        fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return cls(_in_bytes(fields["VmHWM"]), _in_bytes(fields["RssAnon"]))


def reset_peak() -> None:
    """Reset the peak to the current resident size."""
    CLEAR_REFS.write_text(RESET_PEAK)


def _in_bytes(value: str) -> int:
    number, unit = value.split()
    assert unit == "kB"
    return int(number) << 10
