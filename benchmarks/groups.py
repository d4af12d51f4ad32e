"""Which systems are alive at the same time: as many as memory holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.models import PreparedModel
from benchmarks.systems import System

PROCESS_BYTES = 1 << 30
"""Libraries, buffers and the part of the KV cache that a run touches, beside the weights."""

RESERVE_BYTES = 2 << 30
"""Left to the parent, the operating system and the page cache."""


def child_bytes(model: PreparedModel, system: System) -> int:
    """Estimate of what a system holds while it serves."""
    draft_share = model.exit_layer / model.num_layers if system.name == "draft_model" else 0
    return int(model.weight_bytes * (1.1 + draft_share)) + PROCESS_BYTES


def split(
    sizes: Mapping[str, int], capacity_bytes: int, in_every_group: Sequence[str]
) -> list[list[str]]:
    """Fill one group after the other, in the order given.

    Systems of different groups can be compared only through those that take part in all, so the
    fewest groups are best.

    Args:
        sizes: Bytes of each system.
        capacity_bytes: That one group may hold.
        in_every_group: Systems that take part in all groups.

    Raises:
        ValueError: Some system does not fit beside those in every group.
    """
    always = [name for name in sizes if name in in_every_group]
    base = sum(sizes[name] for name in always)
    groups: list[list[str]] = []
    free = 0
    for name in sizes:
        if name in always:
            continue
        if not groups or sizes[name] > free:
            groups.append(list(always))
            free = capacity_bytes - base
        if sizes[name] > free:
            raise ValueError(
                f"{name} needs {sizes[name] >> 20} MiB beside {', '.join(always)}, and "
                f"{free >> 20} MiB are left for it: measure it on a larger machine, or with fewer"
            )
        groups[-1].append(name)
        free -= sizes[name]
    return groups or [always]


def available_bytes() -> int:
    """Memory that processes may still take, as Linux estimates it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("/proc/meminfo names no MemAvailable")
