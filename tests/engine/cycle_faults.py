"""Faults in the cycle that the step machine must detect, on either model runner."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from layerskip_vllm.models.split import SplitForwardMixin
from layerskip_vllm.runner_v2 import model_state
from layerskip_vllm.spec_decode import draft_batch
from layerskip_vllm.spec_decode.draft_batch import DraftSteps, entries_of
from tests import runner_v2

SHIFT = 32
"""Slots between a position's and those of the fault: one block of the tests' engines."""


def in_another_requests_blocks(patch, num_slots: int) -> None:
    """Drafts write their KV one block further on."""

    def shifted(slots: torch.Tensor) -> torch.Tensor:
        return torch.where(slots < 0, slots, (slots + SHIFT) % num_slots)

    if runner_v2.is_chosen():
        from layerskip_vllm.runner_v2.speculator import LayerSkipSpeculator

        compute = LayerSkipSpeculator._compute_slots
        patch.setattr(LayerSkipSpeculator, "_compute_slots", lambda *args: shifted(compute(*args)))
        return
    of_batch = DraftSteps.of_batch

    def of_batch_shifted(*args, **kwargs):
        steps = of_batch(*args, **kwargs)
        return dataclasses.replace(steps, slot_mapping=shifted(steps.slot_mapping))

    patch.setattr(DraftSteps, "of_batch", staticmethod(of_batch_shifted))


def _change_entries(patch, change) -> None:
    """Change which exit states verification reads: `change(entries)`, [num_tokens, 2]."""
    for module in (draft_batch, model_state):
        patch.setattr(module, "entries_of", lambda *args: change(entries_of(*args)))


def from_another_requests_states(patch, num_slots: int) -> None:
    """Verification resumes from the states of the token before, which may be another request's."""

    def turned(entries: np.ndarray) -> np.ndarray:
        return np.column_stack([np.roll(entries[:, 0], 1), entries[:, 1]])

    _change_entries(patch, turned)


def from_the_state_of_the_token_before(patch, num_slots: int) -> None:
    """Verification resumes one early step too early."""
    _change_entries(patch, lambda entries: np.maximum(entries - [0, 1], 0))


def from_a_disturbed_state(patch, num_slots: int) -> None:
    """A state changes between propose and verify."""
    original = SplitForwardMixin.run_remaining_layers

    def disturbed(self, positions, exit_state, *args):
        exit_state.hidden_states[-1] += 1
        return original(self, positions, exit_state, *args)

    patch.setattr(SplitForwardMixin, "run_remaining_layers", disturbed)


def from_another_exit(patch, num_slots: int) -> None:
    """Verification takes the states for those of the next exit."""
    original = SplitForwardMixin.run_remaining_layers

    def at_the_next(self, positions, exit_state, exit_index=0, observe=None):
        following = (exit_index + 1) % self.num_exits
        return original(self, positions, exit_state, following, observe)

    patch.setattr(SplitForwardMixin, "run_remaining_layers", at_the_next)


def up_to_the_last_exit(patch, num_slots: int) -> None:
    """Drafts come from the last exit, whichever was chosen; so do the states."""
    original = SplitForwardMixin.run_early_layers

    def to_the_last(self, input_ids, positions, inputs_embeds=None, exit_index=0, observe=None):
        last = self.num_exits - 1
        return original(self, input_ids, positions, inputs_embeds, last, observe)

    patch.setattr(SplitForwardMixin, "run_early_layers", to_the_last)


ALL = [
    in_another_requests_blocks,
    from_another_requests_states,
    from_the_state_of_the_token_before,
    from_a_disturbed_state,
]

OF_SEVERAL_EXITS = [from_another_exit, up_to_the_last_exit]
"""Faults that an engine with one exit cannot have."""
