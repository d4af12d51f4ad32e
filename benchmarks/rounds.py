"""Systems take turns on the same prompts in every round, so that drift affects all equally."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.child import Child
from benchmarks.forward_time import ForwardTime
from benchmarks.memory import Memory
from benchmarks.models import PreparedModel
from benchmarks.step_breakdown import StepBreakdown
from benchmarks.systems import System
from layerskip_vllm.measure.decoding import Decoding

logger = logging.getLogger(__name__)

REFERENCE = "plain"
"""The reference of all other systems; it is in every group."""

MIN_TEXTS_PER_ROUND = 4
"""Acceptance varies between texts, and with it the speed of speculation."""

FORWARD_PROMPT_LEN = 8
"""Short, since t(M) does not time the prefill."""

NUM_BREAKDOWNS = 3
"""Turns of each system; the one with the median step time is kept."""


@dataclass(frozen=True)
class Schedule:
    """The measurements and their counts.

    Attributes:
        batch_sizes: Concurrent requests.
        num_rounds: Measured rounds; a warm-up comes first.
        max_tokens: Output tokens of each request.
        temperature: Of each request; above 0 it has a seed.
        row_counts: Every M of t(M); empty to skip t(M).
        num_forward_steps: Timed steps of each M in each round.
        with_breakdown: vLLM systems whose step breakdown is measured after the rounds.
    """

    batch_sizes: Sequence[int]
    num_rounds: int
    max_tokens: int
    temperature: float = 0
    row_counts: Sequence[int] = ()
    num_forward_steps: int = 4
    with_breakdown: Collection[str] = ()

    def turns_per_round(self, batch_size: int) -> int:
        """Batches that each system decodes in a round, so that it has enough texts."""
        return -(-MIN_TEXTS_PER_ROUND // batch_size)

    @property
    def num_warm_up_tokens(self) -> int:
        """Output tokens of each request in the warm-up round."""
        return max(8, self.max_tokens // 2)


@dataclass
class Group:
    """Recordings of systems that ran side by side.

    Attributes:
        decodings: System -> batch size -> one entry per turn.
        forward_times: One entry per round: M -> timed steps.
        step_breakdowns: System -> one entry per batch size.
        memory: System -> its memory after the last round.
        starts: System -> its start.
    """

    decodings: dict[str, dict[int, list[Decoding]]] = field(default_factory=dict)
    forward_times: list[dict[int, list[ForwardTime]]] = field(default_factory=list)
    step_breakdowns: dict[str, list[StepBreakdown]] = field(default_factory=dict)
    memory: dict[str, Memory] = field(default_factory=dict)
    starts: dict[str, Start] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """How a system started.

    Attributes:
        process_s: Seconds from the start of the process until it was ready, imports included.
        engine_s: The part spent in the engine's constructor.
        memory: Memory used until it was ready.
        kv_cache_tokens: Tokens that fit in the KV cache's budget; None without a budget.
    """

    process_s: float
    engine_s: float
    memory: Memory
    kv_cache_tokens: int | None

    @classmethod
    def of(cls, child: Child) -> Start:
        """From a child's report when it was ready."""
        ready = child.ready
        return cls(child.start_s, ready.engine_start_s, ready.starting, ready.kv_cache_tokens)


def measure(
    model: PreparedModel,
    systems: Mapping[str, System],
    children: Mapping[str, Child],
    schedule: Schedule,
) -> Group:
    """Run all rounds of one group.

    Args:
        model: Gives the prompts.
        systems: In the order of their turns, which every other round reverses.
        children: Their processes.
        schedule: The measurements.
    """
    group = Group(starts={name: Start.of(child) for name, child in children.items()})
    _warm_up(model, systems, children, schedule)
    for round_index in range(schedule.num_rounds):
        logger.info("%s: round %d of %d", model.name, round_index + 1, schedule.num_rounds)
        turns = list(systems)[:: 1 if round_index % 2 == 0 else -1]
        _measure_round(group, model, [systems[name] for name in turns], children, schedule)
        if schedule.row_counts:
            group.forward_times.append(_forward_times(model, children[REFERENCE], schedule))
    group.step_breakdowns = _step_breakdowns(model, children, schedule)
    group.memory = {name: child.memory() for name, child in children.items()}
    return group


def _warm_up(
    model: PreparedModel,
    systems: Mapping[str, System],
    children: Mapping[str, Child],
    schedule: Schedule,
) -> None:
    for batch_size in schedule.batch_sizes:
        for system in _serving(systems.values(), batch_size):
            prompts = model.prompts[:batch_size]
            decode(
                children[system.name], prompts, schedule.num_warm_up_tokens, schedule.temperature
            )


def _measure_round(
    group: Group,
    model: PreparedModel,
    turns: Sequence[System],
    children: Mapping[str, Child],
    schedule: Schedule,
) -> None:
    done = group.decodings.get(REFERENCE, {}).values()
    offset = sum(decoding.batch_size for decodings in done for decoding in decodings)
    for batch_size in schedule.batch_sizes:
        for _ in range(schedule.turns_per_round(batch_size)):
            prompts = [model.prompts[(offset + i) % len(model.prompts)] for i in range(batch_size)]
            offset += batch_size
            for system in _serving(turns, batch_size):
                decoding = decode(
                    children[system.name], prompts, schedule.max_tokens, schedule.temperature
                )
                by_batch_size = group.decodings.setdefault(system.name, defaultdict(list))
                by_batch_size[batch_size].append(decoding)


def _serving(systems: Iterable[System], batch_size: int) -> list[System]:
    return [system for system in systems if system.serves(batch_size)]


def decode(
    child: Child, prompts: Sequence[Sequence[int]], max_tokens: int, temperature: float = 0
) -> Decoding:
    """Decode one batch in a child."""
    arguments = {"prompts": prompts, "max_tokens": max_tokens}
    if temperature:  # transformers' systems are greedy
        arguments["temperature"] = temperature
    decoding = child.call("decode", **arguments)
    assert isinstance(decoding, Decoding)
    return decoding


def _forward_times(
    model: PreparedModel, child: Child, schedule: Schedule
) -> dict[int, list[ForwardTime]]:
    num_prompts = max(schedule.row_counts)
    prompts = [
        model.prompts[i % len(model.prompts)][:FORWARD_PROMPT_LEN] for i in range(num_prompts)
    ]
    return child.call(  # type: ignore[return-value]
        "forward_times",
        prompts=prompts,
        num_steps=schedule.num_forward_steps,
        row_counts=schedule.row_counts,
    )


def _step_breakdowns(
    model: PreparedModel, children: Mapping[str, Child], schedule: Schedule
) -> dict[str, list[StepBreakdown]]:
    found: dict[str, list[StepBreakdown]] = {name: [] for name in schedule.with_breakdown}
    for batch_size in schedule.batch_sizes:
        breakdowns: dict[str, list[StepBreakdown]] = defaultdict(list)
        for _ in range(NUM_BREAKDOWNS):
            for name in found:
                breakdowns[name].append(_break_down(model, children[name], batch_size, schedule))
        for name, of_system in breakdowns.items():
            found[name].append(
                sorted(of_system, key=lambda breakdown: breakdown.step_ms)[NUM_BREAKDOWNS // 2]
            )
    return found


def _break_down(
    model: PreparedModel, child: Child, batch_size: int, schedule: Schedule
) -> StepBreakdown:
    prompts = model.prompts[:batch_size]
    breakdown = child.call("step_breakdown", prompts=prompts, max_tokens=schedule.max_tokens)
    assert isinstance(breakdown, StepBreakdown)
    return breakdown
