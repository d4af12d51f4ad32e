"""A drafter that says what a script wants, and a ledger of every exit state that it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

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

    def __init__(self, its_runner, target_token: Callable[[str, int], int]) -> None:
        self._runner, drafter = its_runner, its_runner.drafter
        self._target_token = target_token
        self._propose, self._choose = drafter.propose_drafts, drafter._choose_drafts
        self._verify = drafter.verify
        drafter.propose_drafts, drafter._choose_drafts = self._propose_drafts, self._choose_drafts
        drafter.verify = self._verify_and_note
        self._num_right: Mapping[str, int] = {}
        self._usable: dict[tuple[int, int], StateOf] = {}
        self._published: dict[tuple[int, int], StateOf] = {}
        self.faults: list[str] = []
        self.num_used = 0
        """Exit states that a verification resumed from, so far."""

    def begin_step(self, num_right: Mapping[str, int]) -> None:
        """Say how good each request's coming drafts are. Older states are dead from now on."""
        self._num_right = num_right
        self._usable, self._published = self._published, {}

    def _propose_drafts(self, batch, *args):
        self._batch, self._step = batch, 0
        self._propose(batch, *args)
        drafts = batch.drafts() + [[]] * len(batch.rows)
        for row, req_id in enumerate(batch.req_ids):
            fed = [int(batch.next_token_ids[row]), *drafts[row]]
            for k, token_id in enumerate(fed):
                position = int(batch.start_positions[row]) + k
                self._published[row, k] = StateOf(req_id, position, token_id)

    def _choose_drafts(self, *args):
        token_ids, probs = self._choose(*args)
        token_ids = token_ids.clone()
        for row, req_id in enumerate(self._batch.req_ids[: len(token_ids)]):
            if req_id in self._num_right:
                token_ids[row] = self._scripted_token(row)
        self._step += 1
        return token_ids, probs

    def _scripted_token(self, row: int) -> int:
        req_id = self._batch.req_ids[row]
        right = self._target_token(req_id, int(self._batch.start_positions[row]) + self._step + 1)
        return right if self._step < self._num_right[req_id] else (right + 1) % VOCAB_SIZE

    def _verify_and_note(self, entries, positions):
        batch = self._runner.input_batch
        query_start = self._runner.query_start_loc.np[: batch.num_reqs + 1]
        req_ids = np.repeat(batch.req_ids, np.diff(query_start))
        token_ids = self._runner.input_ids.gpu.tolist()
        for i, (row, step) in enumerate(entries.tolist()):
            state = self._usable.pop((row, step), None)
            token = StateOf(str(req_ids[i]), int(positions[i]), token_ids[i])
            if state != token:
                self.faults.append(f"{token} resumes from {row, step}, which holds {state}")
            self.num_used += 1
        return self._verify(entries, positions)
