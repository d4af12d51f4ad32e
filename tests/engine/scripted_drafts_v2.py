"""`ScriptedDrafts` for Model Runner V2."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.engine.scripted_drafts import StateOf
from tests.models import VOCAB_SIZE


class ScriptedDraftsV2:
    """Sits between a runner, its speculator and its model state; see `ScriptedDrafts`.

    The cache's rows are the requests' slots. States of a request that a step leaves out stay
    usable: its tokens and their KV have not changed.
    """

    def __init__(self, its_runner, target_token: Callable[[str, int], int]) -> None:
        self._target_token = target_token
        speculator, self._state = its_runner.speculator, its_runner.model_state
        self._propose, self._sample = speculator.propose, speculator.sample_draft
        self._prepare = self._state.prepare_inputs
        speculator.propose, speculator.sample_draft = self._propose_and_note, self._sample_scripted
        self._state.prepare_inputs = self._prepare_and_note
        self._num_right: Mapping[str, int] = {}
        self._usable: dict[tuple[int, int], StateOf] = {}
        self._published: dict[tuple[int, int], StateOf] = {}
        self.faults: list[str] = []
        self.num_used = 0
        """Exit states from which verification has resumed."""

    def begin_step(self, num_right: Mapping[str, int]) -> None:
        """Set how many of each request's next drafts are right."""
        self._num_right = num_right
        self._usable |= self._published
        self._published = {}

    def _propose_and_note(self, input_batch, *args, **kwargs):
        num_rejected, last_sampled = args[5], args[6]
        self._req_ids = input_batch.req_ids
        starts = input_batch.seq_lens[: input_batch.num_reqs] - num_rejected
        self._starts = starts.tolist()
        drafts = self._propose(input_batch, *args, **kwargs)
        for row, slot in enumerate(input_batch.idx_mapping_np.tolist()):
            fed = [int(last_sampled[slot, 0]), *drafts[row].tolist()]
            for k in range(self._state.num_exit_states[slot]):
                token = StateOf(self._req_ids[row], self._starts[row] + k, fed[k])
                self._published[slot, k] = token
        return drafts

    def _sample_scripted(self, hidden_states, positions, idx_mapping, *args):
        token_ids = self._sample(hidden_states, positions, idx_mapping, *args).clone()
        step = int(args[2])
        for row, req_id in enumerate(self._req_ids):
            if req_id in self._num_right:
                right = self._target_token(req_id, self._starts[row] + step + 1)
                is_right = step < self._num_right[req_id]
                token_ids[row] = right if is_right else (right + 1) % VOCAB_SIZE
        return token_ids

    def _prepare_and_note(self, input_batch, req_states):
        inputs = self._prepare(input_batch, req_states)
        if self._state.num_resumed_tokens == 0:
            return inputs
        (entries,) = inputs["exit_state"].args
        lengths = input_batch.num_scheduled_tokens.tolist()
        req_ids = [
            req_id
            for req_id, length in zip(input_batch.req_ids, lengths, strict=True)
            for _ in range(length)
        ]
        for i, req_id in enumerate(req_ids):
            slot, step = entries[i].tolist()
            state = self._usable.pop((slot, step), None)
            token = StateOf(req_id, int(input_batch.positions[i]), int(input_batch.input_ids[i]))
            if state != token:
                self.faults.append(f"{token} resumes from {slot, step}, which holds {state}")
            self.num_used += 1
        return inputs
