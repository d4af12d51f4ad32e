"""The Markdown report: the recorded results, and the missing ones."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu.comparison import TIE_GAP
from benchmarks.gpu.ideal_report import ideals
from benchmarks.gpu.inside_report import inside
from benchmarks.gpu.models import MODELS
from benchmarks.gpu.records import (
    Checkpoint,
    Done,
    Exactness,
    Failure,
    Forward,
    Machine,
    NotRun,
    Planned,
    Record,
    Speed,
    SyncCheck,
    of_kind,
)
from benchmarks.gpu.speed import COLUMNS, NUM_SPECULATIVE_TOKENS, PLAIN, columns_of
from benchmarks.markdown import NOT_MEASURED, number, table

EQUAL, TIE, DIFFERENT, REPORTED = "equal", "tie", "**DIFFERENT**", "differs, not required"


def markdown(records: Sequence[Record]) -> str:
    """The whole report."""
    sections = [
        ["# GPU check of `self:E`", _summary(records)],
        _section("Machine", _machine(of_kind(records, Machine))),
        _section("Exactness", _exactness(of_kind(records, Exactness))),
        _section("Speed", _speeds(records)),
        _section("Inside a step", inside(records)),
        _section("Failed", _failures(of_kind(records, Failure))),
        _section("Not run", _not_run(records)),
    ]
    return "\n\n".join(part for section in sections for part in section) + "\n"


def verdict(record: Exactness) -> str:
    """The meaning of a comparison. Rounding decides a tie; the check requires only float32."""
    if record.num_equal == record.num_requests:
        return EQUAL
    if not record.is_required:
        return REPORTED
    return TIE if record.max_gap is not None and abs(record.max_gap) <= TIE_GAP else DIFFERENT


def has_failed(records: Sequence[Record]) -> bool:
    """Whether a job failed, float32 tokens differed, or our methods synchronized."""
    return bool(
        of_kind(records, Failure)
        or any(verdict(record) == DIFFERENT for record in of_kind(records, Exactness))
        or any(record.error is not None for record in of_kind(records, SyncCheck))
    )


def _section(title: str, parts: Sequence[str]) -> list[str]:
    return [f"## {title}", *parts] if parts else []


def _summary(records: Sequence[Record]) -> str:
    required = [record for record in of_kind(records, Exactness) if record.is_required]
    verdicts = [verdict(record) for record in required]
    counts = f"{verdicts.count(EQUAL)} equal, {verdicts.count(TIE)} equal but for ties, "
    exact = f"float32: {len(required)} comparisons: {counts}{verdicts.count(DIFFERENT)} different."
    failed, not_run = len(of_kind(records, Failure)), len(_names_not_run(records))
    done = len(of_kind(records, Done))
    return f"{exact} Jobs: {done} done, {failed} failures, {not_run} not run."


def _machine(records: Sequence[Machine]) -> list[str]:
    return [
        "\n".join(f"- {name}: {text}" for name, text in record.values.items()) for record in records
    ]


def _exactness(records: Sequence[Exactness]) -> list[str]:
    if not records:
        return []
    rows = [
        [
            record.job.removeprefix("exactness "),
            record.engine,
            record.reference,
            f"{record.num_equal} of {record.num_requests}",
            NOT_MEASURED
            if record.request is None
            else f"request {record.request}, token {record.token}",
            _gap(record, record.gap),
            _gap(record, record.max_gap),
            verdict(record),
        ]
        for record in records
    ]
    header = [
        "dtype, runner, model",
        "engine",
        "against",
        "equal requests",
        "first difference",
        "gap",
        "largest gap",
        "verdict",
    ]
    return [
        "Greedy token ids, K = 4 fixed, requests joining a batch that decodes. The gap is plain's "
        "log-probability of its own token minus that of the other token, at the first difference "
        f"of a request. float32 must be equal; a gap up to {TIE_GAP:g} counts as a tie. bfloat16 "
        "is reported. Compiled: vLLM's defaults, with CUDA graphs where the table of engines shows "
        "them. Plain against plain shows what compilation alone changes.",
        table(header, rows),
    ]


def _gap(record: Exactness, gap: float | None) -> str:
    if record.request is None:
        return NOT_MEASURED
    return "unknown" if gap is None else f"{gap:.2g}"


def _speeds(records: Sequence[Record]) -> list[str]:
    speeds, parts = of_kind(records, Speed), []
    for name in MODELS:
        own = [record for record in speeds if record.model == name]
        made = [record for record in of_kind(records, Checkpoint) if record.model == name]
        if own or made:
            parts += [f"### {MODELS[name].description}", *map(_about, made)]
        if own:
            parts += [_speed_table(name, own), _acceptance_table(name, own)]
            forwards = [record for record in of_kind(records, Forward) if record.model == name]
            parts += ideals(name, own, forwards)
    return parts


def _about(made: Checkpoint) -> str:
    settings = MODELS[made.model]
    vocab = ""
    if settings.draft_vocab_size is not None:
        vocab = f" The draft vocabulary has {settings.draft_vocab_size} tokens."
    return (
        f"{settings.dtype}, random weights, E = {settings.exit_layer} of "
        f"{settings.shape.num_layers}, K = {NUM_SPECULATIVE_TOKENS} fixed, vocabulary "
        f"{settings.shape.vocab_size}. The remaining layers' output projections are scaled by "
        f"{made.scale:.4f}: exit {settings.exit_layer} agrees with the last layer on "
        f"{made.agreement:.3f} of the text (target {settings.acceptance:.2f}, {made.num_tries} "
        f"tries, {made.new_ngrams:.0%} of the 4-grams are new).{vocab}"
    )


def _speed_table(model: str, records: Sequence[Speed]) -> str:
    """Tokens/s and the ratio to plain of the same run; a dash where nothing was measured."""
    at = {(record.system, record.batch_size): record for record in records}
    columns = columns_of(model)
    rows = []
    for batch_size in sorted({record.batch_size for record in records}):
        plain = at.get((PLAIN, batch_size))
        cells = []
        for column in columns:
            own = at.get((column.name, batch_size))
            cell = NOT_MEASURED if own is None else f"{own.tokens_per_s:.0f}"
            if own is not None and plain is not None and own is not plain:
                cell += f"; {own.tokens_per_s / plain.tokens_per_s:.2f}"
            cells.append(cell)
        rows.append([f"batch {batch_size}", *cells])
    return "\n\n".join(
        [
            "Output tokens/s of decoding, all requests together, median; after the semicolon the "
            f"ratio to {COLUMNS[PLAIN].title}, in this run.",
            table(["", *(column.title for column in columns)], rows),
        ]
    )


def _acceptance_table(model: str, records: Sequence[Speed]) -> str:
    header = ["", "range of tokens/s", "tokens per step", "acceptance per token", "rate", "length"]
    titles = {column.name: column.title for column in columns_of(model)}
    return "\n\n".join(
        [
            "By vLLM's counters: accepted / (accepted + first rejections), accepted / drafted, "
            "and 1 + accepted / drafts.",
            table(
                header,
                [
                    [
                        f"{titles.get(record.system, record.system)}, batch {record.batch_size}",
                        f"{record.min_tokens_per_s:.0f} to {record.max_tokens_per_s:.0f}",
                        f"{record.tokens_per_step:.2f}",
                        number(record.acceptance_per_token),
                        number(record.acceptance_rate),
                        number(record.mean_acceptance_length),
                    ]
                    for record in records
                ],
            ),
        ]
    )


def _failures(records: Sequence[Failure]) -> list[str]:
    parts = []
    for record in records:
        parts.append(f"- {record.job}: {record.reason}")
        if record.log_tail:
            parts.append("\n".join(["```", *record.log_tail, "```"]))
    return parts


def _names_not_run(records: Sequence[Record]) -> dict[str, str]:
    """Jobs without an outcome, and why."""
    reasons = {record.job: f"not run: {record.reason}" for record in of_kind(records, NotRun)}
    ended = {record.job for record in of_kind(records, Done)}
    ended |= {record.job for record in of_kind(records, Failure)}
    for plan in of_kind(records, Planned):
        for name in plan.jobs:
            if name not in ended:
                reasons.setdefault(name, "no outcome: it waited or ran when this was written")
    return reasons


def _not_run(records: Sequence[Record]) -> list[str]:
    lines = [f"- {name}: {reason}" for name, reason in _names_not_run(records).items()]
    for plan in of_kind(records, Planned):
        lines += [f"- part {part}: not asked for" for part in plan.parts_left_out]
    return ["\n".join(lines)] if lines else []
