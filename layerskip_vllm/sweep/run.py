"""Runs a sweep's turns and records each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from layerskip_vllm.config import OPTIONS_KEY, SELF_PREFIX
from layerskip_vllm.sweep.engine_process import EngineProcess, Engines
from layerskip_vllm.sweep.plan import PLAIN, EngineSetup, Plan, Turn, schedule
from layerskip_vllm.sweep.results import Measurement, ResultsFile
from layerskip_vllm.sweep.subject import Subject


@dataclass(frozen=True)
class Decode:
    """How every turn decodes.

    Attributes:
        max_tokens: Output tokens of each request.
        temperature: Of each request.
        vllm_flags: Further flags of `vllm serve`, for every engine.
        draft_vocab_counts: File of token counts that ranks the draft vocabulary.
        counts_digest: Hash of that file.
        keep_engines: Keep all engines alive, instead of one at a time.
    """

    max_tokens: int
    temperature: float = 0
    vllm_flags: Sequence[str] = ()
    draft_vocab_counts: str | None = None
    counts_digest: str | None = None
    keep_engines: bool = False


def run_sweep(
    plan: Plan, subject: Subject, decode: Decode, results: ResultsFile, console: Console
) -> None:
    """Measure what the results file lacks.

    Args:
        plan: What to measure.
        subject: The model.
        decode: How.
        results: Gets each measurement at once.
        console: Shows the progress.

    Raises:
        EngineError: An engine failed.
        ValueError: The file holds measurements of another device.
    """
    done = {entry.turn for entry in results.measurements}
    turns = schedule(plan, done, decode.keep_engines)
    engines = Engines(
        lambda setup: _start(setup, plan, subject, decode, results), keep=decode.keep_engines
    )
    try:
        with _progress(console) as progress:
            task = progress.add_task("", total=len(turns))
            references: dict[int, float] = {}
            for turn in turns:
                progress.update(task, description=_description(turn, plan, engines))
                engine = engines.get(turn.setup)
                progress.update(task, description=_description(turn, plan, engines))
                results.add(_measure(engine, turn, subject, decode, references))
                progress.advance(task)
    finally:
        engines.close()


def _start(
    setup: EngineSetup, plan: Plan, subject: Subject, decode: Decode, results: ResultsFile
) -> EngineProcess:
    logs = results.path.parent / "logs"
    logs.mkdir(exist_ok=True)
    log = logs / f"{setup.name.replace(':', '-').replace(', ', '-').replace(' ', '-')}.log"
    engine = EngineProcess(setup.name, _start_message(setup, plan, subject, decode), log)
    try:
        results.check_device(engine.device)
    except ValueError:
        engine.close()
        raise
    return engine


def _measure(
    engine: EngineProcess,
    turn: Turn,
    subject: Subject,
    decode: Decode,
    references: dict[int, float],  # batch size -> tokens/s of the last plain turn; updated
) -> Measurement:
    is_plain = turn.setup == PLAIN
    speed = engine.measure(
        turn.prompts(subject.prompts),
        decode.max_tokens,
        decode.temperature,
        None if is_plain else turn.num_speculative_tokens,
    )
    if is_plain:
        references[turn.batch_size] = speed.tokens_per_s
    return Measurement(
        turn,
        speed.tokens_per_s,
        references[turn.batch_size],
        speed.drafts,
        engine.device,
        None if turn.setup.draft_vocab_size is None else decode.counts_digest,
    )


def _start_message(
    setup: EngineSetup, plan: Plan, subject: Subject, decode: Decode
) -> Mapping[str, object]:
    """The first message to an engine's process; `worker.py` says what it holds."""
    speculation: dict[str, object] = {}
    if setup != PLAIN:
        options: dict[str, object] = {"adaptive": False}
        if setup.draft_vocab_size is not None:
            options["draft_vocab_size"] = setup.draft_vocab_size
            if decode.draft_vocab_counts is not None:
                options["draft_vocab_counts"] = decode.draft_vocab_counts
        speculation = {
            "spec_model": f"{SELF_PREFIX}{setup.exit_layer}",
            # Each request drafts the K of its turn, up to this.
            "spec_tokens": max(plan.draft_lengths),
            "additional_config": {OPTIONS_KEY: options},
        }
    return {
        "model": subject.name,
        "vllm_flags": list(decode.vllm_flags),
        "defaults": {
            "max_model_len": max(map(len, subject.prompts)) + decode.max_tokens,
            "max_num_seqs": max(plan.batch_sizes),
        },
        "speculation": speculation,
    }


def _description(turn: Turn, plan: Plan, engines: Engines) -> str:
    where = f"round {turn.round_index + 1}/{plan.num_rounds} {turn.setup.name}"
    if not engines.is_alive(turn.setup):
        return f"{where}, starting"
    drafts = f", K={turn.num_speculative_tokens}" if turn.num_speculative_tokens else ""
    return f"{where}{drafts}, batch {turn.batch_size}"


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),  # the line fits into 80 columns
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console) as progress:
        yield progress
