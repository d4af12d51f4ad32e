"""A drafter whose drafts follow a script, and a record of every exit state that it publishes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from tests.models import VOCAB_SIZE


class StateOf(NamedTuple):
    """The token that an entry of the exit query cache belongs to."""

    req_id: str
    position: int
    token_id: int


class ScriptedDrafts:
    """Sits between a runner and its drafter.

    In each step, a request's first `num_right` drafts are the target's tokens and the others are
    not; requests that are not in the script draft as usual. Wrong uses of exit states go to
    `faults`, since an exception inside a step would leave the engine in the middle of it.
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
        """Exit states from which verification has resumed."""

    def begin_step(self, num_right: Mapping[str, int]) -> None:
        """Set how many of each request's next drafts are right, and expire older states."""
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

    def _verify_and_note(self, entries, positions, exit_index):
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
        return self._verify(entries, positions, exit_index)
