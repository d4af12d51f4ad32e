"""What a CUDA graph would capture of a region: its operations, their shapes and their addresses.

A region is safe to capture if a run on other data gives the same record, and reads nothing on the
host: a graph replays the operations of the run that was captured, on the addresses of that run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from triton.runtime.interpreter import InterpretedFunction

READS = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"}
"""Methods of tensors that give the host what the device holds."""

SIZED_BY_DATA = ("nonzero", "masked_select", "unique", "_local_scalar_dense", "lift_fresh")
"""Operations whose result has a shape that data decide, or that bring a value to or from the host.
`lift_fresh` is `torch.tensor(...)`: it copies from the host."""


class HostReads(TorchFunctionMode):
    """Notes each read of a tensor on the host, by the method's name.

    Everything lies in one memory here. A tensor counts as the host's if it is one of those given,
    was made without naming a device, as vLLM does for the host's, or from such tensors alone.
    """

    def __init__(self, hosts: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.noted: list[str] = []
        self._hosts = {_address(tensor): tensor for tensor in hosts}

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        tensors = list(filter(_is_tensor, tree_leaves((args, kwargs))))
        if name in READS and _address(tensors[0]) not in self._hosts:
            self.noted.append(name)
        results = func(*args, **kwargs)
        of_host = all(_address(tensor) in self._hosts for tensor in tensors)
        if of_host and (tensors or kwargs.get("device") in (None, "cpu")):
            for result in filter(_is_tensor, tree_leaves(results)):
                self._hosts[_address(result)] = result  # kept, so that no address is given twice
        return results


class Operations(TorchDispatchMode):
    """Records operations: name and arguments. A tensor stands there as shape, strides and place.

    The place of one that the region did not make is its address, of the others who made it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.record: list[tuple[str, Any]] = []
        self.unsafe: list[str] = []
        self._made: dict[int, int] = {}
        self._kept: list[torch.Tensor] = []  # so that no address is given twice

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        self.note(str(func), (args, kwargs))
        if any(name in str(func) for name in SIZED_BY_DATA) or _has_mask(func, args):
            self.unsafe.append(str(func))
        known = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if _is_tensor(leaf)}
        results = func(*args, **kwargs)
        for result in filter(_is_tensor, tree_leaves(results)):
            if _address(result) not in known:
                self._made[_address(result)] = len(self.record)
                self._kept.append(result)
        return results

    def note(self, name: str, arguments: Any) -> None:
        self.record.append((name, tree_map(self._place, arguments)))

    def _place(self, value: Any) -> Any:
        if not _is_tensor(value):
            plain = isinstance(value, (int, float, bool, str, torch.dtype, type(None)))
            return value if plain else type(value).__name__
        address = _address(value)
        place = ("made by", self._made[address]) if address in self._made else address
        return (tuple(value.shape), value.stride(), value.storage_offset(), str(value.dtype), place)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _has_mask(func: Any, args: tuple) -> bool:
    """Whether an index is a mask: how many rows it selects is known on the device alone."""
    indices = tree_leaves(args[1:2]) if "aten.index" in str(func) else []
    return any(_is_tensor(index) and index.dtype == torch.bool for index in indices)


@contextmanager
def without_interpreter(
    note: Callable[[str, Any], None] = lambda *_: None,
) -> Iterator[None]:
    """Hide from the modes what Triton's interpreter does; each launch is noted in its place."""
    launch = InterpretedFunction.run

    def run(kernel, *args, grid, warmup, **kwargs):  # type: ignore[no-untyped-def]
        note(kernel.__name__, (args, kwargs, None if callable(grid) else grid))
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            return launch(kernel, *args, grid=grid, warmup=warmup, **kwargs)

    with patch.object(InterpretedFunction, "run", run):
        yield


@contextmanager
def recorded() -> Iterator[Operations]:
    """Record what runs within; a kernel of Triton is one operation, interpreted or not."""
    operations, reads = Operations(), HostReads()
    with without_interpreter(operations.note), reads, operations:
        yield operations
    operations.unsafe += reads.noted
