"""From what the rounds recorded to the figures of a result."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.decoding import Decoding, DraftCounts
from benchmarks.environment import Environment
from benchmarks.forward_time import ForwardTimes
from benchmarks.ideal import IdealCycle
from benchmarks.models import DTYPE_BYTES, PreparedModel
from benchmarks.result import (
    BatchFigures,
    Comparison,
    IdealFigures,
    ModelResult,
    SystemResult,
)
from benchmarks.rounds import REFERENCE, Group, Start
from benchmarks.run import JUDGED, Run
from benchmarks.spread import Spread, percentile, ratios
from benchmarks.systems import MAX_NUM_SEQS, System
from benchmarks.thresholds import IDEAL, THRESHOLDS


def group_of(groups: Iterable[Group], *names: str) -> Group | None:
    """The first group in which these systems were measured side by side."""
    return next((group for group in groups if all(n in group.decodings for n in names)), None)


def system_result(system: System, groups: Sequence[Group], starts: Sequence[Start]) -> SystemResult:
    """One system's figures, from the first group that it was in.

    Args:
        system: Which.
        groups: All of the run.
        starts: Starts of it that served nothing else.
    """
    group = group_of(groups, system.name)
    assert group is not None
    memory = group.memory[system.name]
    return SystemResult(
        name=system.name,
        arguments=dict(system.arguments),
        starts=[group.starts[system.name], *starts],
        peak_rss_bytes=memory.peak_rss_bytes,
        anonymous_bytes=memory.anonymous_bytes,
        batches=[
            batch_figures(decodings, group.decodings[REFERENCE][batch_size])
            for batch_size, decodings in sorted(group.decodings[system.name].items())
        ],
        where=group.where.get(system.name, []),
    )


def batch_figures(decodings: Sequence[Decoding], plain: Sequence[Decoding]) -> BatchFigures:
    """One system at one batch size, beside plain on the same prompts, turn by turn."""
    drafts = sum((decoding.drafts for decoding in decodings), DraftCounts())
    speeds = tokens_per_s(decodings)
    per_token_ms = [1000 * s for d in decodings for s in d.time_per_output_token_s]
    pairs = [
        (ours, theirs)
        for decoding, reference in zip(decodings, plain, strict=True)
        for ours, theirs in zip(decoding.token_ids, reference.token_ids, strict=True)
    ]
    return BatchFigures(
        batch_size=decodings[0].batch_size,
        tokens_per_s=Spread.of(speeds),
        speedup=ratios(speeds, tokens_per_s(plain)),
        tokens_per_step=statistics.fmean(d.tokens_per_step for d in decodings),
        time_to_first_token_ms=Spread.of(
            1000 * statistics.median(d.time_to_first_token_s) for d in decodings
        ),
        time_per_output_token_p50_ms=statistics.median(per_token_ms),
        time_per_output_token_p99_ms=percentile(per_token_ms, 99),
        acceptance_rate=drafts.acceptance_rate,
        mean_acceptance_length=drafts.mean_acceptance_length,
        acceptance_per_token=drafts.acceptance_per_token,
        num_texts=len(pairs),
        num_texts_equal=sum(ours == theirs for ours, theirs in pairs),
    )


def tokens_per_s(decodings: Iterable[Decoding]) -> list[float]:
    """A value a turn."""
    return [decoding.tokens_per_s for decoding in decodings]


def ideal_figures(
    model: PreparedModel,
    times: ForwardTimes,
    num_speculative_tokens: int,
    decodings: Mapping[int, Sequence[Decoding]],
) -> list[IdealFigures]:
    """The row-aware ideal of a system, one entry a batch size.

    Args:
        model: Its E and L.
        times: t(M).
        num_speculative_tokens: K, which the system must hold fixed.
        decodings: Of that system, by batch size; they say how many tokens a cycle yields.
    """
    ideals = []
    for batch_size, rounds in sorted(decodings.items()):
        cycle = IdealCycle.of(
            times,
            batch_size=batch_size,
            num_speculative_tokens=num_speculative_tokens,
            exit_layer=model.exit_layer,
            num_layers=model.num_layers,
        )
        length = statistics.fmean(decoding.tokens_per_step for decoding in rounds)
        ideals.append(IdealFigures(batch_size, cycle, length, cycle.speedup(length)))
    return ideals


def comparisons(
    model_name: str, groups: Sequence[Group], ideals: Sequence[IdealFigures]
) -> list[Comparison]:
    """Every cell of the table of thresholds that belongs to a model."""
    return [
        Comparison(
            row.description,
            row.numerator,
            row.denominator,
            batch_size,
            _ideal_ratio(row.numerator, batch_size, groups, ideals)
            if row.denominator == IDEAL
            else _ratio(row.numerator, row.denominator, batch_size, groups),
            at_least,
        )
        for row in THRESHOLDS
        if row.model == model_name
        for batch_size, at_least in row.at_least.items()
    ]


def _ratio(
    numerator: str, denominator: str, batch_size: int, groups: Sequence[Group]
) -> Spread | None:
    group = group_of(groups, numerator, denominator)
    if group is None:
        return None
    above, below = (group.decodings[name].get(batch_size) for name in (numerator, denominator))
    return ratios(tokens_per_s(above), tokens_per_s(below)) if above and below else None


def _ideal_ratio(
    system: str, batch_size: int, groups: Sequence[Group], ideals: Sequence[IdealFigures]
) -> Spread | None:
    """Measured speed-up over the ideal one, at each turn's own acceptance."""
    group = group_of(groups, system)
    ideal = next((ideal for ideal in ideals if ideal.batch_size == batch_size), None)
    if group is None or ideal is None:
        return None
    decodings = group.decodings[system][batch_size]
    plain = group.decodings[REFERENCE][batch_size]
    return Spread.of(
        ours.tokens_per_s / theirs.tokens_per_s / ideal.cycle.speedup(ours.tokens_per_step)
        for ours, theirs in zip(decodings, plain, strict=True)
    )


def exit_query_cache_bytes(model: PreparedModel, num_speculative_tokens: int) -> int:
    """Hidden state and residual, which is float32, of K tokens for each request that may run."""
    states = MAX_NUM_SEQS * num_speculative_tokens * model.hidden_size
    return states * (DTYPE_BYTES[model.dtype] + DTYPE_BYTES["float32"])


def model_result(
    run: Run,
    num_speculative_tokens: int,
    environment: Environment,
    group_names: list[list[str]],
    groups: Sequence[Group],
    starts: Mapping[str, Sequence[Start]],
) -> ModelResult:
    """Everything that a run found.

    Args:
        run: What was measured.
        num_speculative_tokens: K.
        environment: Of this process and its children.
        group_names: Systems that were measured side by side.
        groups: What each of these groups recorded.
        starts: System -> starts of it that served nothing.
    """
    model = run.model
    times = ForwardTimes.median(times for group in groups for times in group.forward_times)
    judged = group_of(groups, JUDGED)
    ideals: list[IdealFigures] = []
    if judged is not None and times.measured:
        ideals = ideal_figures(model, times, num_speculative_tokens, judged.decodings[JUDGED])
    return ModelResult(
        name=model.name,
        description=model.description,
        dtype=model.dtype,
        exit_layer=model.exit_layer,
        num_layers=model.num_layers,
        num_speculative_tokens=num_speculative_tokens,
        weight_bytes=model.weight_bytes,
        exit_query_cache_bytes=exit_query_cache_bytes(model, num_speculative_tokens),
        kv_cache_bytes=model.kv_cache_bytes,
        dial=model.dial,
        num_rounds=run.schedule.num_rounds,
        max_tokens=run.schedule.max_tokens,
        environment=environment,
        groups=group_names,
        systems=[
            system_result(system, groups, starts.get(name, []))
            for name, system in run.systems.items()
        ],
        forward_times=times.measured,
        ideals=ideals,
        comparisons=comparisons(model.name, groups, ideals),
    )
