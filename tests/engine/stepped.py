"""An engine that is stepped by hand; its memory and exit states are checked after each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from layerskip_vllm.measure.engine import scheduler
from layerskip_vllm.scheduling.policy import Choice
from tests.engine.engines import as_prompts, close, generate, greedy, make_llm, runner
from tests.engine.kv_memory import KvMemory
from tests.engine.scripted_choices import choices_of
from tests.engine.scripted_drafts import ScriptedDrafts
from tests.engine.scripted_drafts_v2 import ScriptedDraftsV2


@dataclass(frozen=True)
class Scheduled:
    """A request's part in one step."""

    num_computed: int  # before the step
    num_tokens: int
    block_ids: list[int]


def script(
    its_runner, target_token: Callable[[str, int], int]
) -> ScriptedDrafts | ScriptedDraftsV2:
    """Let tests decide an engine's drafts, on either model runner."""
    kind = ScriptedDraftsV2 if hasattr(its_runner, "speculator") else ScriptedDrafts
    return kind(its_runner, target_token)


class ScheduleRecorder:
    """Records the scheduler's decisions by the request's internal id."""

    def __init__(self, llm) -> None:
        self.scheduler = scheduler(llm)
        self._schedule = self.scheduler.schedule
        self.scheduler.schedule = self._record
        self.last: dict[str, Scheduled] = {}

    def _record(self, *args, **kwargs):
        output = self._schedule(*args, **kwargs)
        cached = output.scheduled_cached_reqs
        num_computed = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        num_computed |= {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        self.last = {
            req_id: Scheduled(num_computed[req_id], num_tokens, self.block_ids(req_id))
            for req_id, num_tokens in output.num_scheduled_tokens.items()
        }
        return output

    def block_ids(self, req_id: str) -> list[int]:
        return self.scheduler.kv_cache_manager.get_block_ids(req_id)[0]


@dataclass(frozen=True)
class KnownSequence:
    """A prompt, its greedy continuation, and the KV of a prefill of both."""

    num_prompt_tokens: int
    token_ids: list[int]
    kv: torch.Tensor  # [num_layers, len(token_ids), elements]


def computed_kv(llm, prompts: list[list[int]], num_tokens: int) -> tuple[list, list]:
    """Outputs of a run, and the KV of each request, read after its last step.

    Later would be too late: a finished request's blocks are reused first.
    """
    recorder, memory = ScheduleRecorder(llm), KvMemory(runner(llm))
    engine, outputs, kv = llm.llm_engine, {}, {}
    for i, prompt in enumerate(as_prompts(prompts)):
        engine.add_request(f"r{i}", prompt, greedy(num_tokens, ignore_eos=True))
    while engine.has_unfinished_requests():
        recorder.last = {}
        for output in engine.step():
            outputs[output.request_id] = list(output.outputs[0].token_ids)
        for req_id, scheduled in recorder.last.items():
            num_computed = scheduled.num_computed + scheduled.num_tokens
            kv[req_id] = memory.read(scheduled.block_ids, num_computed)
    # First come, first scheduled.
    return [outputs[f"r{i}"] for i in range(len(prompts))], list(kv.values())


def known_sequences(model: str, prompts: list[list[int]], num_tokens: int) -> list[KnownSequence]:
    """Sequences from stock vLLM without prefix caching, so that each is prefilled from scratch."""
    llm = make_llm(model, enable_prefix_caching=False)
    outputs = generate(llm, as_prompts(prompts), greedy(num_tokens, ignore_eos=True))
    wholes = [prompt + output for prompt, output in zip(prompts, outputs, strict=True)]
    _, kv = computed_kv(llm, wholes, 1)
    close(llm)
    return [KnownSequence(len(p), w, k) for p, w, k in zip(prompts, wholes, kv, strict=True)]


def batching_difference(model: str, sequences: Sequence[KnownSequence]) -> float:
    """Largest difference between the KV of stock vLLM's chunked decoding and of one prefill.

    Forwards of 1 to 16 rows compute the same numbers as one of all rows, so any difference is
    float32 rounding in another order, and not caused by speculation.
    """
    llm = make_llm(model, enable_prefix_caching=False, max_num_batched_tokens=16, max_num_seqs=8)
    num_tokens = min(len(s.token_ids) - s.num_prompt_tokens for s in sequences)
    prompts = [s.token_ids[: s.num_prompt_tokens] for s in sequences]
    outputs, kv = computed_kv(llm, prompts, num_tokens)
    close(llm)
    for output, s in zip(outputs, sequences, strict=True):
        assert output == s.token_ids[s.num_prompt_tokens :][:num_tokens]
    return max(
        float((own - s.kv[:, : own.shape[1]]).abs().max())
        for own, s in zip(kv, sequences, strict=True)
    )


class Proposed(NamedTuple):
    """What a step may draft for a request."""

    num_layers: int
    """Of the early layers, which hold the KV of t and of its drafts."""
    num_tokens: int
    """t and its drafts; 0 if nothing is drafted."""


class SteppedEngine:
    """Adds, aborts, preempts and steps; `step` checks the invariants after every step.

    With several exit layers, a script chooses one in each step, or the test does.
    """

    def __init__(
        self,
        llm,
        sequences: Sequence[KnownSequence],
        exit_layer: int | list[int],
        kv_tolerance: float,
    ) -> None:
        its_runner = runner(llm)
        self.engine, self.sequences, self.kv_tolerance = llm.llm_engine, sequences, kv_tolerance
        self._exit_layers = exit_layer if isinstance(exit_layer, list) else [exit_layer]
        self._choices = choices_of(llm) if len(self._exit_layers) > 1 else None
        self._num_speculative_tokens = its_runner.speculative_config.num_speculative_tokens
        self._proposed: dict[str, Proposed] = {}
        """By the last step of each request, by internal id."""
        self.memory = KvMemory(its_runner)
        self.recorder = ScheduleRecorder(llm)
        self.drafts = script(its_runner, self._target_token)
        self.live: dict[str, KnownSequence] = {}
        """By the request's internal id."""
        self._inner_ids: dict[str, str] = {}
        self.num_finished = self.num_forced_preemptions = 0

    def _target_token(self, req_id: str, position: int) -> int:
        token_ids = self.live[req_id].token_ids
        return token_ids[min(position, len(token_ids) - 1)]

    def add(self, sequence: int, max_tokens: int) -> None:
        known = self.sequences[sequence]
        prompt = {"prompt_token_ids": known.token_ids[: known.num_prompt_tokens]}
        params = greedy(max_tokens, ignore_eos=True)
        name = f"r{len(self._inner_ids)}"
        self._inner_ids[name] = self.engine.add_request(name, prompt, params)
        self.live[self._inner_ids[name]] = known

    def abort(self, index: int) -> None:
        req_id = list(self.live)[index % len(self.live)]
        self.engine.abort_request([req_id], internal=True)
        del self.live[req_id]

    def preempt_all(self) -> None:
        self.num_forced_preemptions += len(self.recorder.scheduler.running)
        self.engine.reset_prefix_cache(reset_running_requests=True)

    def step(self, num_right: Sequence[int], choice: Choice | None = None) -> None:
        """Run one step; the first `num_right[i]` drafts of the i-th request are right.

        An engine with one exit makes no choices, and ignores what is given.
        """
        if self._choices is not None:
            self._choices.next = choice
        self.drafts.begin_step(
            {req_id: num_right[i % len(num_right)] for i, req_id in enumerate(self.live)}
        )
        self.memory.fill(self._unused_slots())
        before, self.recorder.last = self.memory.snapshot(), {}
        outputs = self.engine.step()
        self._proposed |= dict.fromkeys(self.recorder.last, self._proposed_now())
        assert self.drafts.faults == []
        self._check_writes(self.memory.changed_slots(before))
        for output in outputs:
            self._check_output(output)
        for req_id, known in self.live.items():
            self._check_request(req_id, known)

    def clear(self) -> None:
        """Return the engine to its state before the first request."""
        self.engine.abort_request(list(self.live), internal=True)
        self.live.clear()
        self._proposed.clear()
        self.drafts.faults.clear()
        assert not self.engine.has_unfinished_requests()
        assert self.engine.reset_prefix_cache()

    def _proposed_now(self) -> Proposed:
        """What the last step may have drafted for each request."""
        if self._choices is None:
            return Proposed(self._exit_layers[0], self._num_speculative_tokens + 1)
        exit_index, num_drafts, _ = self._choices.made[-1]
        return Proposed(self._exit_layers[exit_index], num_drafts + 1 if num_drafts else 0)

    def _unused_slots(self) -> torch.Tensor:
        """Slots without valid KV: bool [num_layers, num_blocks, block_size].

        Valid are computed positions, cached blocks and, in the layers that have drafted, t and its
        drafts. The KV of rejected drafts is not.
        """
        slots = torch.ones(self.memory.shape, dtype=torch.bool)
        for req_id in self.live:
            request = self.recorder.scheduler.requests[req_id]
            block_ids, end = self.recorder.block_ids(req_id), request.num_computed_tokens
            blocks, in_block = self.memory.slots(block_ids, range(end))
            slots[:, blocks, in_block] = False
            proposed = self._proposed.get(req_id, Proposed(0, 0))
            drafted = range(end, end + proposed.num_tokens)
            blocks, in_block = self.memory.slots(block_ids, drafted)
            slots[: proposed.num_layers, blocks, in_block] = False
        pool = self.recorder.scheduler.kv_cache_manager.block_pool
        cached = [block.block_id for block in pool.blocks if block.block_hash is not None]
        slots[:, torch.tensor(cached, dtype=torch.int64)] = False
        return slots

    def _check_writes(self, changed: torch.Tensor) -> None:
        """A request writes only to its own blocks, and to no position that it has computed."""
        allowed = torch.zeros(self.memory.shape, dtype=torch.bool)
        for req_id, scheduled in self.recorder.last.items():
            start, end = scheduled.num_computed, scheduled.num_computed + scheduled.num_tokens
            blocks, in_block = self.memory.slots(scheduled.block_ids, range(start, end))
            allowed[:, blocks, in_block] = True
            proposed = self._proposed[req_id]
            drafted = range(start, end + proposed.num_tokens)
            blocks, in_block = self.memory.slots(scheduled.block_ids, drafted)
            allowed[: proposed.num_layers, blocks, in_block] = True
        stray = (changed & ~allowed).nonzero().tolist()
        assert not stray, f"stray writes at [layer, block, slot] {stray}, by {self.recorder.last}"

    def _check_output(self, output) -> None:
        """The output equals the target's; finished requests are no longer live."""
        req_id = self._inner_ids[output.request_id]
        known, received = self.live[req_id], list(output.outputs[0].token_ids)
        assert received == known.token_ids[known.num_prompt_tokens :][: len(received)]
        if output.finished:
            del self.live[req_id]
            self.num_finished += 1

    def _check_request(self, req_id: str, known: KnownSequence) -> None:
        """Its tokens equal the target's, and every computed position has its KV in all layers."""
        request = self.recorder.scheduler.requests[req_id]
        token_ids = list(request.all_token_ids)
        assert token_ids == known.token_ids[: len(token_ids)]
        num_computed = request.num_computed_tokens
        if num_computed:
            kv = self.memory.read(self.recorder.block_ids(req_id), num_computed)
            assert kv.shape[1] == num_computed
            difference = (kv - known.kv[:, :num_computed]).abs().amax(dim=2)
            wrong = (difference > self.kv_tolerance).nonzero().tolist()
            assert not wrong, f"{req_id}: KV at [layer, position] {wrong} differs from a prefill's"
