"""Results as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.markdown import NOT_MEASURED, number, spread, table
from benchmarks.result import BatchFigures, ModelResult, SystemResult
from benchmarks.step_breakdown import PARTS, REST
from benchmarks.systems import FIXED_K
from layerskip_vllm.measure.spread import Spread

MIB = 1 << 20


def markdown(results: Sequence[ModelResult]) -> str:
    """The whole report."""
    parts = ["# Benchmarks"]
    for result in results:
        parts += [
            f"## {result.name}",
            _about(result),
            "### Speed",
            "Output tokens/s of decoding, all requests together: median of the turns, with the "
            "ratio to plain in the same turn (median, quartiles).",
            speeds(result),
            "### Latency and acceptance",
            _latencies(result),
            "### Memory and start-up",
            _memory(result),
        ]
        if result.forward_times:
            parts += ["### Plain forward and the ideal", _forward_times(result), _ideals(result)]
        if any(system.step_breakdowns for system in result.systems):
            parts += ["### Step breakdown", _step_breakdowns(result)]
    return "\n\n".join(parts) + "\n"


def _about(result: ModelResult) -> str:
    env = result.environment
    versions = ", ".join(f"{name} {version}" for name, version in env.versions.items())
    variables = " ".join(f"{name}={value}" for name, value in env.variables.items())
    sampling = f"temperature {result.temperature:g} with seeds" if result.temperature else "greedy"
    lines = [
        f"{result.description}; {result.dtype}, E = {result.exit_layer} of {result.num_layers} "
        f"layers, K = {result.num_speculative_tokens}, {result.weight_bytes / MIB:.0f} MiB of "
        f"weights, KV cache budget {result.kv_cache_bytes / MIB:.0f} MiB.",
        f"{result.num_rounds} rounds, {result.max_tokens} output tokens per request, {sampling}. "
        f"Measured side by side: {'; '.join(', '.join(group) for group in result.groups)}.",
        f"{env.cpu}, {env.num_cores} cores, {env.memory_bytes / 2**30:.0f} GiB; Python "
        f"{env.python}, {versions}; commit {env.commit}, {env.date}.",
        f"Command: `{env.command}`. Set for every system: `{variables}`.",
    ]
    if result.calibration is not None:
        agreement = result.calibration["agreement"]
        assert isinstance(agreement, dict)
        lines.append(
            f"Calibrated: output projections of layers [{result.exit_layer}, {result.num_layers}) "
            f"scaled by {result.calibration['scale']:.4f}; exit {result.exit_layer} then agrees "
            f"with the last layer on {agreement['mean']:.3f} of the model's text (by prompt "
            f"{min(agreement['by_prompt']):.2f} to {max(agreement['by_prompt']):.2f}), and "
            f"{agreement['new_ngrams']:.1%} of the text's 4-grams are new."
        )
    return "\n\n".join(lines)


def speeds(result: ModelResult) -> str:
    """Output tokens/s of every system, and the ratio to plain."""

    def cell(figures: BatchFigures | None) -> str:
        if figures is None:
            return NOT_MEASURED
        return f"{figures.tokens_per_s.median:.1f}; {spread(figures.speedup)}"

    return table(
        ["system", *(f"batch {batch_size}" for batch_size in result.batch_sizes)],
        [
            [system.name, *(cell(system.at(batch_size)) for batch_size in result.batch_sizes)]
            for system in result.systems
        ],
    )


def _latencies(result: ModelResult) -> str:
    return table(
        [
            "system",
            "batch",
            "first token ms",
            "per token p50 ms",
            "p99 ms",
            "acceptance rate",
            "mean acceptance length",
            "per token",
            "texts equal to plain's",
        ],
        [
            [
                system.name,
                str(figures.batch_size),
                f"{figures.time_to_first_token_ms.median:.0f}",
                f"{figures.time_per_output_token_p50_ms:.1f}",
                f"{figures.time_per_output_token_p99_ms:.1f}",
                number(figures.acceptance_rate),
                number(figures.mean_acceptance_length),
                number(figures.acceptance_per_token),
                f"{figures.num_texts_equal} of {figures.num_texts}",
            ]
            for system in result.systems
            for figures in system.batches
        ],
    )


def _memory(result: ModelResult) -> str:
    return table(
        [
            "system",
            "peak RSS MiB, starting",
            "peak RSS MiB, serving",
            "anonymous MiB",
            "KV cache tokens",
            "engine start s",
            "process start s",
        ],
        [_memory_row(system) for system in result.systems],
    )


def _memory_row(system: SystemResult) -> list[str]:
    starts = system.starts[1:] or system.starts
    return [
        system.name,
        f"{max(start.memory.peak_rss_bytes for start in system.starts) / MIB:.0f}",
        f"{system.peak_rss_bytes / MIB:.0f}",
        f"{system.anonymous_bytes / MIB:.0f}",
        str(system.kv_cache_tokens or NOT_MEASURED),
        f"{Spread.of(start.engine_s for start in starts).median:.1f}",
        f"{Spread.of(start.process_s for start in starts).median:.1f}",
    ]


def _forward_times(result: ModelResult) -> str:
    return table(
        ["rows M", *(str(num_rows) for num_rows in result.forward_times)],
        [
            ["layers ms", *(f"{1000 * t.layers_s:.1f}" for t in result.forward_times.values())],
            ["LM head ms", *(f"{1000 * t.head_s:.1f}" for t in result.forward_times.values())],
        ],
    )


def _ideals(result: ModelResult) -> str:
    """The row-aware ideal beside the measured speed-up of `self` at the same K."""
    own = result.system(FIXED_K)
    return table(
        [
            "batch",
            "draft ms",
            "last early step ms",
            "verify ms",
            "LM head ms",
            "cycle ms",
            "plain step ms",
            "tokens per cycle",
            "ideal speed-up",
            "measured",
            "measured / ideal",
        ],
        [
            [
                str(ideal.batch_size),
                *(
                    f"{1000 * seconds:.1f}"
                    for seconds in (
                        ideal.cycle.draft_s,
                        ideal.cycle.early_s,
                        ideal.cycle.remaining_s,
                        ideal.cycle.head_s,
                        ideal.cycle.total_s,
                        ideal.cycle.plain_s,
                    )
                ),
                f"{ideal.tokens_per_cycle:.2f}",
                f"{ideal.speedup:.2f}",
                *_measured_speedup(own.at(ideal.batch_size) if own else None, ideal.speedup),
            ]
            for ideal in result.ideals
        ],
    )


def _measured_speedup(figures: BatchFigures | None, ideal: float) -> list[str]:
    if figures is None:
        return [NOT_MEASURED, NOT_MEASURED]
    measured = figures.speedup.median
    return [f"{measured:.2f}", f"{measured / ideal:.2f}"]


def _step_breakdowns(result: ModelResult) -> str:
    parts = [*PARTS, REST]
    return table(
        ["system", "batch", "step ms", *parts],
        [
            [
                system.name,
                str(breakdown.batch_size),
                f"{breakdown.step_ms:.2f}",
                *(f"{breakdown.parts_ms[part]:.2f}" for part in parts),
            ]
            for system in result.systems
            for breakdown in system.step_breakdowns
        ],
    )
