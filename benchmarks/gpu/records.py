"""The check's results, one JSON line each, so that a kill loses nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar, get_args


@dataclass(frozen=True)
class Machine:
    """Versions and environment: name -> text, in the report's order."""

    values: dict[str, str]


@dataclass(frozen=True)
class Planned:
    """The plan of this run.

    Attributes:
        deadline_s: Seconds for everything.
        jobs: Names, in order.
        parts_left_out: Parts that the command line did not choose.
    """

    deadline_s: float
    jobs: list[str]
    parts_left_out: list[str]


@dataclass(frozen=True)
class EngineStart:
    """A started engine, as vLLM configured itself.

    Attributes:
        job: Name of the job that started it.
        engine: Which of the job's engines.
        runner: Module and class of the model runner.
        num_graphs: CUDA graphs that vLLM counted while it captured; a piecewise one counts per
            piece.
        full_graphs: Graphs of whole forwards and whole propose steps, by owner; model runner V2.
        graph_bytes: Memory that capturing took; None if nothing was captured.
        start_s: Seconds of the engine's constructor.
    """

    job: str
    engine: str
    runner: str
    attention_backend: str
    async_scheduling: bool
    cudagraph_mode: str
    num_graphs: int
    full_graphs: dict[str, int]
    graph_bytes: int | None
    start_s: float


@dataclass(frozen=True)
class Exactness:
    """Tokens of one engine against those of a reference engine.

    Attributes:
        is_required: Whether a difference fails the check.
        request: First request that differs; None if all are equal.
        token: Its first output token that differs, counted from 0.
        gap: log-probability of the reference's token minus that of the other one, under plain
            decoding; None if the other one is not among plain's most likely tokens.
        max_gap: The largest such gap over all differing requests; None if one is unknown.
    """

    job: str
    engine: str
    reference: str
    is_required: bool
    num_equal: int
    num_requests: int
    request: int | None = None
    token: int | None = None
    gap: float | None = None
    max_gap: float | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A model with random weights that was made for the speed table."""

    model: str
    description: str
    scale: float
    agreement: float
    new_ngrams: float
    num_tries: int
    weight_bytes: int
    making_s: float


@dataclass(frozen=True)
class Speed:
    """One system at one batch size; output tokens/s at full concurrency, prefill apart.

    Attributes:
        tokens_per_s: Median of the repetitions; `min_tokens_per_s` and `max_...` are their range.
        tokens_per_step: Per request and step.
    """

    model: str
    system: str
    batch_size: int
    num_repeats: int
    tokens_per_s: float
    min_tokens_per_s: float
    max_tokens_per_s: float
    tokens_per_step: float
    acceptance_rate: float | None
    acceptance_per_token: float | None
    mean_acceptance_length: float | None


@dataclass(frozen=True)
class Forward:
    """t(M): milliseconds of plain vLLM's decode step at M requests, and of its LM head alone."""

    model: str
    num_rows: int
    step_ms: float
    head_ms: float


@dataclass(frozen=True)
class Launches:
    """The host's requests to the device in a decode step: calls per step, by CUDA function.

    Attributes:
        device_events: Kernels and copies that the device ran, those of graphs included, per step.
        device_ms: Their time, per step.
    """

    model: str
    system: str
    batch_size: int
    num_steps: int
    calls: dict[str, float]
    device_events: float
    device_ms: float


@dataclass(frozen=True)
class Phases:
    """Mean milliseconds of the parts of a decode step.

    Attributes:
        host_ms: From call to return.
        device_ms: Between CUDA events around the call; includes what the device waits for the host.
    """

    model: str
    system: str
    batch_size: int
    num_steps: int
    step_ms: float
    host_ms: dict[str, float]
    device_ms: dict[str, float]


@dataclass(frozen=True)
class SyncCheck:
    """Decode steps in which a synchronization inside our own methods is an error.

    Attributes:
        calls: Guarded calls by method.
        error: The end of the traceback; None if nothing synchronized.
    """

    model: str
    system: str
    steps: str
    calls: dict[str, int]
    error: str | None = None


@dataclass(frozen=True)
class NotRun:
    """A job that was not started."""

    job: str
    reason: str


@dataclass(frozen=True)
class Failure:
    """A job, or one engine of it, that did not run to its end."""

    job: str
    reason: str
    log_tail: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Done:
    """A job that ran to its end."""

    job: str
    seconds: float


Record = (
    Machine
    | Planned
    | EngineStart
    | Exactness
    | Checkpoint
    | Speed
    | Forward
    | Launches
    | Phases
    | SyncCheck
    | NotRun
    | Failure
    | Done
)
Emit = Callable[[Record], None]

KINDS: dict[str, type] = {kind.__name__: kind for kind in get_args(Record)}

Kind = TypeVar("Kind")


def of_kind(records: Iterable[Record], kind: type[Kind]) -> list[Kind]:
    """The records of one kind, in order."""
    return [record for record in records if isinstance(record, kind)]


def append(path: Path, record: Record) -> None:
    """Write a record in a single system call; processes may append to the same file at once.

    A newline before each line keeps it apart from what a killed process may have left.
    """
    line = json.dumps({"kind": type(record).__name__, **asdict(record)})
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, f"\n{line}\n".encode())
    finally:
        os.close(file)


def read(path: Path) -> Iterator[Record]:
    """Read the records of a file, without a line that a killed process left incomplete."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in filter(None, text.splitlines()):
        try:
            values = json.loads(line)
            kind = KINDS[values.pop("kind")]
        except (ValueError, KeyError):
            continue
        yield kind(**values)
