"""Turn the recordings of the rounds into a result's figures."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.environment import Environment
from benchmarks.forward_time import ForwardTimes
from benchmarks.ideal import IdealCycle
from benchmarks.models import PreparedModel
from benchmarks.result import (
    BatchFigures,
    IdealFigures,
    ModelResult,
    SystemResult,
)
from benchmarks.rounds import REFERENCE, Group, Start
from benchmarks.run import Run
from benchmarks.systems import FIXED_K, System
from layerskip_vllm.measure.decoding import Decoding, DraftCounts
from layerskip_vllm.measure.spread import Spread, percentile, ratios


def group_of(groups: Iterable[Group], *names: str) -> Group | None:
    """The first group that contains all these systems."""
    return next((group for group in groups if all(n in group.decodings for n in names)), None)


def system_result(system: System, groups: Sequence[Group], starts: Sequence[Start]) -> SystemResult:
    """One system's figures, from the first group that contains it.

    Args:
        system: The system.
        groups: All groups of the run.
        starts: Its timed starts, which served nothing.
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
        step_breakdowns=group.step_breakdowns.get(system.name, []),
    )


def batch_figures(decodings: Sequence[Decoding], plain: Sequence[Decoding]) -> BatchFigures:
    """Figures of one system at one batch size, compared with plain turn by turn."""
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
    """One value per turn."""
    return [decoding.tokens_per_s for decoding in decodings]


def ideal_figures(
    model: PreparedModel,
    times: ForwardTimes,
    num_speculative_tokens: int,
    decodings: Mapping[int, Sequence[Decoding]],
) -> list[IdealFigures]:
    """The row-aware ideal of a system, one entry per batch size.

    Args:
        model: Gives E and L.
        times: t(M).
        num_speculative_tokens: K, which must be fixed in the system.
        decodings: Of that system, by batch size; they give the tokens per cycle.
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


def model_result(
    run: Run,
    num_speculative_tokens: int,
    environment: Environment,
    group_names: list[list[str]],
    groups: Sequence[Group],
    starts: Mapping[str, Sequence[Start]],
) -> ModelResult:
    """All figures of a run.

    Args:
        run: The run.
        num_speculative_tokens: K.
        environment: Of this process and its children.
        group_names: The systems of each group.
        groups: The recordings of each group.
        starts: System -> its timed starts, which served nothing.
    """
    model = run.model
    times = ForwardTimes.median(times for group in groups for times in group.forward_times)
    group = group_of(groups, FIXED_K)
    ideals: list[IdealFigures] = []
    if group is not None and times.measured:
        ideals = ideal_figures(model, times, num_speculative_tokens, group.decodings[FIXED_K])
    return ModelResult(
        name=model.name,
        description=model.description,
        dtype=model.dtype,
        exit_layer=model.exit_layer,
        num_layers=model.num_layers,
        num_speculative_tokens=num_speculative_tokens,
        weight_bytes=model.weight_bytes,
        kv_cache_bytes=model.kv_cache_bytes,
        calibration=model.calibration,
        num_rounds=run.schedule.num_rounds,
        max_tokens=run.schedule.max_tokens,
        temperature=run.schedule.temperature,
        environment=environment,
        groups=group_names,
        systems=[
            system_result(system, groups, starts.get(name, []))
            for name, system in run.systems.items()
        ],
        forward_times=times.measured,
        ideals=ideals,
    )
