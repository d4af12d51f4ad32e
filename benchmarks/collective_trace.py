"""Count the collectives of a tensor-parallel rank. These functions run by `LLM.collective_rpc`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from vllm.v1.worker.worker_base import WorkerBase

LAYER_COLLECTIVES = ("all_reduce", "all_gather", "gather")
OTHER_COLLECTIVES = ("all_gatherv", "reduce_scatter", "reduce_scatterv", "broadcast", "send")
AMONG_PROCESSES = "broadcast among processes"
COLLECTIVES = (*LAYER_COLLECTIVES, *OTHER_COLLECTIVES, AMONG_PROCESSES)


@dataclass
class CollectiveTrace:
    """Calls and input bytes of one rank's collectives.

    Attributes:
        num_calls: By collective.
        num_bytes: Of the input tensors, by collective.
    """

    num_calls: dict[str, int]
    num_bytes: dict[str, int]


def start_trace(worker: WorkerBase) -> None:
    """Start counting the collectives of the rank's tensor-parallel group.

    `torch.distributed.broadcast` is counted too: the group broadcasts objects with it.
    """
    import torch
    from vllm.distributed.parallel_state import get_tp_group

    communicator = get_tp_group().device_communicator
    worker.collective_trace = CollectiveTrace(
        dict.fromkeys(COLLECTIVES, 0), dict.fromkeys(COLLECTIVES, 0)
    )
    for name in (*LAYER_COLLECTIVES, *OTHER_COLLECTIVES):
        counted = _counting(worker.collective_trace, name, getattr(communicator, name))
        setattr(communicator, name, counted)
    broadcast = torch.distributed.broadcast
    torch.distributed.broadcast = _counting(worker.collective_trace, AMONG_PROCESSES, broadcast)


def _counting(
    trace: CollectiveTrace, name: str, collective: Callable[..., torch.Tensor]
) -> Callable[..., torch.Tensor]:
    def counted(tensor: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        trace.num_calls[name] += 1
        trace.num_bytes[name] += tensor.nbytes
        return collective(tensor, *args, **kwargs)

    return counted


def reset_trace(worker: WorkerBase) -> None:
    """Reset the counts."""
    for counts in (worker.collective_trace.num_calls, worker.collective_trace.num_bytes):
        counts.update(dict.fromkeys(COLLECTIVES, 0))


def trace_of(worker: WorkerBase) -> CollectiveTrace:
    """Return the counts."""
    return worker.collective_trace
