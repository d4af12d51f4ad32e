"""A drafter that says what a script wants, and a ledger of every exit state that it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from tests.models import VOCAB_SIZE


class StateOf(NamedTuple):
    """The token whose state an entry of the exit query cache holds."""

    req_id: str
    position: int
    token_id: int


class ScriptedDrafts:
    """Stands between a runner and its drafter.

    A request's first `num_right` drafts of a step are what the target will say, and the others are
    not; a request of which the script says nothing drafts as it would. What is wrong with the use
    of exit states is noted and raised later: an exception inside of a step would leave the engine
    in the middle of it.
    """

    def __init__(self, its_runner, target_says: Callable[[str, int], int]) -> None:
        self._runner, drafter = its_runner, its_runner.drafter
        self._target_says = target_says
        self._propose, self._choose = drafter.propose_drafts, drafter._choose_drafts
        self._verify, self._width = drafter.verify, drafter.exit_query_cache.width
        drafter.propose_drafts, drafter._choose_drafts = self._propose_drafts, self._choose_drafts
        drafter.verify = self._verify_and_note
        self._num_right: Mapping[str, int] = {}
        self._usable: dict[int, StateOf] = {}
        self._published: dict[int, StateOf] = {}
        self.faults: list[str] = []
        self.num_used = 0
        """Exit states that a verification resumed from, so far."""

    def begin_step(self, num_right: Mapping[str, int]) -> None:
        """Say how good each request's coming drafts are. Older states are dead from now on."""
        self._num_right = num_right
        self._usable, self._published = self._published, {}

    def _propose_drafts(self, schedule, req_ids, *args):
        self._schedule, self._req_ids, self._step = schedule, list(req_ids), 0
        drafts = self._propose(schedule, req_ids, *args)
        for row, req_id in enumerate(req_ids):
            start = int(schedule.start_positions[row])
            fed = [int(schedule.next_token_ids[row]), *drafts.token_ids[row, :-1].tolist()]
            for k in range(drafts.num_drafted[row]):
                self._published[row * self._width + k] = StateOf(req_id, start + k, fed[k])
        return drafts

    def _choose_drafts(self, *args):
        choice = self._choose(*args)
        tokens = choice.token_ids.clone()
        for row, req_id in enumerate(self._req_ids):
            if req_id in self._num_right:
                tokens[row] = self._scripted_token(row)
        self._step += 1
        return choice._replace(token_ids=tokens)

    def _scripted_token(self, row: int) -> int:
        req_id = self._req_ids[row]
        right = self._target_says(req_id, int(self._schedule.start_positions[row]) + self._step + 1)
        return right if self._step < self._num_right[req_id] else (right + 1) % VOCAB_SIZE

    def _verify_and_note(self, plan, input_ids, positions, inputs_embeds, common_attn_metadata):
        fresh = set(plan.fresh_token_indices.tolist())
        query_start = common_attn_metadata.query_start_loc_cpu
        rows = torch.repeat_interleave(torch.arange(len(query_start) - 1), query_start.diff())
        for i, index in enumerate(plan.exit_state_indices.tolist()):
            if i in fresh:
                continue
            state = self._usable.pop(index, None)
            req_id = self._runner.input_batch.req_ids[rows[i]]
            token = StateOf(req_id, int(positions[i]), int(input_ids[i]))
            if state != token:
                self.faults.append(f"{token} resumes from entry {index}, which holds {state}")
            self.num_used += 1
        return self._verify(plan, input_ids, positions, inputs_embeds, common_attn_metadata)
