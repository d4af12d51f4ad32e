"""What tensor-parallel ranks decide from their own clocks must be one decision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from vllm.distributed.parallel_state import GroupCoordinator


def with_first_rank(group: GroupCoordinator) -> Callable[[Sequence[float]], Sequence[float]]:
    """Make the function that replaces each rank's numbers by the first rank's.

    It is a collective of `group`, 8 bytes a number through the processes' memory, never the
    device's; in a group of one it does nothing.
    """
    if group.world_size == 1:
        return lambda values: values

    def agree(values: Sequence[float]) -> Sequence[float]:
        tensor = torch.tensor(values, dtype=torch.float64)
        torch.distributed.broadcast(tensor, src=group.first_rank, group=group.cpu_group)
        return tensor.tolist()

    return agree
