"""CPU ranks share memory only within a host.

Target: vllm.distributed.device_communicators.cpu_communicator:_CPUSHMDistributed.make_group_name
Reason: vLLM's CPU ranks share memory if their group has the same name on each of them. The name
    holds the TCP port and the ranks, which are equal on all hosts, so ranks on two hosts fail with
    `open shm in SHMManager failed`.
How: Calls the original and appends the boot id and the device number of `/dev/shm`. Ranks on
    different hosts then talk through gloo, as vLLM intends.
Upstream: 0008-cpu-shared-memory-per-host.patch
May go: When the oldest supported vLLM tells hosts apart.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from vllm.distributed.device_communicators.cpu_communicator import (
    CpuCommunicator,
    _CPUSHMDistributed,
)
from vllm.platforms import current_platform

from layerskip_vllm.compat.releases import is_supported_vllm
from layerskip_vllm.compat.wrapping import wrap

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SHARED_MEMORY = Path("/dev/shm")


def is_needed() -> bool:
    """By release, on a CPU: a probe on one host cannot see the name on another."""
    return current_platform.is_cpu() and is_supported_vllm()


def install() -> None:
    """Wrap the function that names a group's shared memory."""
    wrap(_CPUSHMDistributed, "make_group_name", _make_group_name)


def _make_group_name(
    original: Callable[[CpuCommunicator], str], communicator: CpuCommunicator
) -> str:
    return f"{original(communicator)}-{host_identity()}"


def host_identity() -> str:
    """Return a string, equal in two processes if and only if they see the same shared memory.

    The kernel's boot id distinguishes machines, and the device number distinguishes containers on
    one machine. Names and ports do not: two hosts can have the same name and address, and two jobs
    the same port. The string is empty on systems other than Linux.
    """
    if not sys.platform.startswith("linux"):
        return ""
    return f"{BOOT_ID.read_text(encoding='ascii').strip()}-{SHARED_MEMORY.stat().st_dev}"
