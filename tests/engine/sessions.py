"""Sessions with streaming input, driven through an engine core in this process.

`AsyncLLM.generate` sends what these functions send. Here a test decides between which steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count

from vllm import LLM, SamplingParams

from layerskip_vllm.measure.engine import scheduler
from tests.engine.engines import greedy, random_prompts

NUMBERS = count()
"""Request ids are used once in a test run."""


Turns = Sequence[tuple[list[int], SamplingParams]]
"""A session's inputs, each with the parameters of its answer."""


STOPS = list(range(0, 256, 16))
"""So many stop tokens that most answers end at one of them, anywhere in a step."""


def turns(
    lengths: Sequence[int],
    first: SamplingParams,
    others: SamplingParams | None = None,
    seed: int = 3,
) -> Turns:
    """Inputs of these lengths, the first with its own parameters."""
    params = [first] + [others or first] * (len(lengths) - 1)
    return list(zip(random_prompts(lengths, seed=seed), params, strict=True))


def mixed_conversations() -> list[Turns]:
    """Sessions of unequal length, whose answers end at a stop token or at `max_tokens`."""
    options = [{}, {"repetition_penalty": 1.3}, {"min_tokens": 6}, {"presence_penalty": 0.7}]
    lengths = [[40, 12, 12], [20], [70, 1, 30, 1], [5, 5, 5, 5, 5], [33, 64], [50, 1, 1, 1]]
    return [
        turns(its_lengths, greedy(8 + 5 * n, stop_token_ids=STOPS, **options[n % 4]), seed=n)
        for n, its_lengths in enumerate(lengths)
    ]


def too_long_conversation() -> tuple[Turns, Turns]:
    """Inputs of which the second and the last exceed 256 tokens in all; the others.

    There is room for 47 tokens after the first answer, and for 34 after the next one.
    """
    whole = turns([200, 48, 5, 34, 1], greedy(9, ignore_eos=True))
    return whole, [whole[i] for i in (0, 2, 3)]


@dataclass
class Answer:
    """What a turn returned."""

    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None

    @classmethod
    def refused(cls) -> "Answer":
        """To an input that is too long."""
        return cls(finish_reason="error")


@dataclass
class Session:
    """One request that goes on: its inputs, and an answer to each that was sent."""

    llm: LLM
    turns: Turns
    request_id: str = field(default_factory=lambda: f"session-{next(NUMBERS)}")
    answers: list[Answer] = field(default_factory=list)
    num_sent: int = 0

    def send(self) -> None:
        """Send the next input, or the end of inputs after the last one."""
        client = self.llm.llm_engine.engine_core
        is_end = self.num_sent == len(self.turns)
        token_ids, params = ([0], self.turns[0][1]) if is_end else self.turns[self.num_sent]
        request = self.llm.llm_engine.input_processor.process_inputs(
            self.request_id,
            {"prompt_token_ids": list(token_ids)},
            params,
            supported_tasks=("generate",),
            resumable=not is_end,
        )
        client.add_request(request)
        self.num_sent += 1

    def read(self, output) -> bool:
        """Add one step's output to the turn's answer; returns whether the turn has ended."""
        if not self.answers or self.answers[-1].finish_reason is not None:
            self.answers.append(Answer())
        answer = self.answers[-1]
        answer.token_ids.extend(output.new_token_ids)
        reason = output.finish_reason
        answer.finish_reason = None if reason is None else str(reason)
        return answer.finish_reason is not None

    def abort(self) -> None:
        """End the session, wherever its answer is."""
        self.llm.llm_engine.engine_core.abort_requests([self.request_id])


def converse(
    llm: LLM,
    conversations: Sequence[Turns | Session],
    is_early: bool = False,
    between_steps: Callable[[int], object] = lambda num_steps: None,
) -> list[list[Answer]]:
    """Hold all conversations at once; returns each one's answers.

    Args:
        llm: The engine.
        conversations: The turns of each.
        is_early: Whether all inputs wait at the engine before it answers the first.
        between_steps: Called with the number of steps so far.
    """
    sessions = [c if isinstance(c, Session) else Session(llm, c) for c in conversations]
    for session in sessions:
        for _ in range(len(session.turns) + 1 if is_early else 1):
            session.send()
    by_id = {session.request_id: session for session in sessions}
    num_steps = 0
    while scheduler(llm).requests:
        between_steps(num_steps)
        num_steps += 1
        assert num_steps < 2000, "the engine answers no more"
        outputs = llm.llm_engine.engine_core.get_output()
        llm.llm_engine.logger_manager.record(outputs.scheduler_stats, None)
        for output in outputs.outputs:
            session = by_id[output.request_id]
            if session.read(output) and session.num_sent <= len(session.turns):
                session.send()
    return [session.answers for session in sessions]
