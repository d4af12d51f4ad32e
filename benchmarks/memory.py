"""Memory of this process, as Linux reports it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""Written to clear_refs, sets the peak to the present size (proc_pid_clear_refs(5))."""


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        peak_rss_bytes: Most that was resident since the start, or since the last reset.
        anonymous_bytes: Resident now and backed by no file: weights, KV cache, buffers. Loading
            maps the checkpoint's file, so a peak holds the weights twice; this does not.
    """

    peak_rss_bytes: int
    anonymous_bytes: int

    @classmethod
    def read(cls) -> Memory:
        """This process, now."""
        fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
        return cls(_in_bytes(fields["VmHWM"]), _in_bytes(fields["RssAnon"]))


def reset_peak() -> None:
    """Let the peak start anew from what is resident now."""
    CLEAR_REFS.write_text(RESET_PEAK)


def _in_bytes(value: str) -> int:
    number, unit = value.split()
    assert unit == "kB"
    return int(number) << 10
