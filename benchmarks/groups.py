"""Group the systems that run at the same time: as many as fit in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.models import PreparedModel
from benchmarks.systems import System

PROCESS_BYTES = 1 << 30
"""Memory of a process besides its weights: libraries, buffers, the used part of the KV cache."""

RESERVE_BYTES = 2 << 30
"""Left for the parent, the operating system and the page cache."""


def child_bytes(model: PreparedModel, system: System) -> int:
    """Estimate a system's memory while it serves."""
    draft_share = model.exit_layer / model.num_layers if system.name == "draft_model" else 0
    return int(model.weight_bytes * (1.1 + draft_share)) + PROCESS_BYTES


def split(
    sizes: Mapping[str, int], capacity_bytes: int, in_every_group: Sequence[str]
) -> list[list[str]]:
    """Fill one group after another, in the given order.

    Systems of different groups can be compared only through the systems in all groups, so fewer
    groups are better.

    Args:
        sizes: Bytes of each system.
        capacity_bytes: Memory for one group.
        in_every_group: Systems to include in all groups.

    Raises:
        ValueError: A system does not fit beside those in every group.
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
                f"{name} needs {sizes[name] >> 20} MiB beside {', '.join(always)}, but only "
                f"{free >> 20} MiB are free: use a larger machine, or fewer systems"
            )
        groups[-1].append(name)
        free -= sizes[name]
    return groups or [always]


def available_bytes() -> int:
    """Memory available to new processes, as Linux estimates it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("/proc/meminfo has no MemAvailable")
