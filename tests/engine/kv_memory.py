"""Read and compare the KV cache of an engine in this process, slot by slot."""

from __future__ import annotations

from collections.abc import Sequence

import torch

CANARY = 12345.678
"""Fills unused memory; finite, since a kernel may multiply it by 0."""


class KvMemory:
    """All layers' keys and values, addressed by block and slot for any kernel layout."""

    def __init__(self, its_runner) -> None:
        self.layers = its_runner.kv_caches
        """[num_blocks, num_kv_heads, block_size, 2 * head_size] each, in the order of layers."""
        self.num_blocks, _, self.block_size, _ = self.layers[0].shape
        self._elements = slot_elements(its_runner)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(layers, blocks, slots per block)."""
        return len(self.layers), self.num_blocks, self.block_size

    def snapshot(self) -> torch.Tensor:
        """A copy of all memory: [num_layers, num_blocks, elements in a block]."""
        return torch.stack([layer.flatten(1) for layer in self.layers])

    def changed_slots(self, before: torch.Tensor) -> torch.Tensor:
        """Slots whose bytes differ from a snapshot: bool [num_layers, num_blocks, block_size]."""
        changed = before.view(torch.int32) != self.snapshot().view(torch.int32)
        return changed[:, :, self._elements].any(dim=-1)

    def read(self, block_ids: Sequence[int], num_positions: int) -> torch.Tensor:
        """Keys and values of a request's first positions: [num_layers, num_positions, elements]."""
        blocks, slots = self.slots(block_ids, range(num_positions))
        elements = self._elements[slots]
        return torch.stack([layer.flatten(1)[blocks[:, None], elements] for layer in self.layers])

    def slots(
        self, block_ids: Sequence[int], positions: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(blocks, slots) of a request's positions, as far as it has blocks for them."""
        end = len(block_ids) * self.block_size
        held = torch.tensor([p for p in positions if p < end], dtype=torch.int64)
        blocks = torch.tensor(block_ids, dtype=torch.int64)[held // self.block_size]
        return blocks, held % self.block_size

    @torch.inference_mode()
    def fill(self, slots: torch.Tensor) -> None:
        """Write the canary to the given slots, bool [num_layers, num_blocks, block_size]."""
        for layer, chosen in zip(self.layers, slots, strict=True):
            blocks, in_block = chosen.nonzero(as_tuple=True)
            layer.view(self.num_blocks, -1)[blocks[:, None], self._elements[in_block]] = CANARY


def slot_elements(its_runner) -> torch.Tensor:
    """The elements of each slot in a flat block: [block_size, elements in a slot].

    Writes one token to each slot of a blank block, since the kernel may interleave slots.
    """
    layer = next(iter(its_runner.compilation_config.static_forward_context.values()))
    _, num_kv_heads, block_size, width = its_runner.kv_caches[0].shape
    token = torch.ones(1, num_kv_heads, width // 2)
    elements = []
    for slot in range(block_size):
        blank = torch.zeros(1, num_kv_heads, block_size, width)
        layer.impl.do_kv_cache_update(layer, token, token, blank, torch.tensor([slot]))
        elements.append(blank.flatten().nonzero().squeeze(1))
    found = torch.stack(elements)
    assert found.unique().numel() == blank.numel()  # each element belongs to one slot
    return found
