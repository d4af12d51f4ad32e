"""`python -m benchmarks.plain_steps`: the cost of steps without drafts.

If drafts are almost never accepted, default settings soon stop drafting; a step should then cost as
much as plain vLLM's. Speed varies more between processes than within one, so every pair of figures
comes from new processes, and the report gives the ratios of the pairs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.against import OTHER, with_other
from benchmarks.arguments import add_against, add_process_arguments, positive, set_up_process
from benchmarks.child import children
from benchmarks.environment import child_variables, installed_preloads
from benchmarks.markdown import NOT_MEASURED, spread, table
from benchmarks.models import MODELS, PreparedModel, prepare
from benchmarks.rounds import REFERENCE, decode
from benchmarks.systems import System
from benchmarks.systems import table as systems_of
from layerskip_vllm.measure.spread import Spread, ratios

logger = logging.getLogger(__name__)

UNTRAINED = "untrained"
"""The model whose drafts are almost never accepted."""

OWN = "self-default"
NUM_PAIRS, NUM_GENERATIONS, MAX_TOKENS, MAX_NUM_SEQS = 5, 5, 200, 16


@dataclass(frozen=True)
class PlainSteps:
    """Median output tokens/s of each process, by system, and ratios pair by pair.

    Attributes:
        tokens_per_s: System -> one entry per process; prefill included.
        drafted: System -> drafted tokens per output token, over all its processes.
        ratios: System -> its speed over plain's.
        own_over_other: This checkout's speed over the other's; None without another checkout.
    """

    model: str
    preload: list[str]
    tokens_per_s: dict[str, list[float]]
    drafted: dict[str, float]
    ratios: dict[str, Spread]
    own_over_other: Spread | None


def measure(
    model: PreparedModel,
    systems: Mapping[str, System],
    env: Mapping[str, str],
    *,
    preload: list[str],
    num_pairs: int,
    folder: Path,
) -> PlainSteps:
    """Start plain and every other system in turn, `num_pairs` times.

    Args:
        model: The first prompt of this model is decoded.
        systems: Plain first.
        env: Environment of their processes.
        preload: Libraries that `env` preloads, for the report.
        num_pairs: Processes of each system.
        folder: For logs.
    """
    speeds: dict[str, list[float]] = {name: [] for name in systems}
    num_drafted = dict.fromkeys(systems, 0)
    for pair in range(num_pairs):
        for name, system in systems.items():
            with children({name: system}, env, folder) as started:
                generations = [
                    decode(started[name], model.prompts[:1], MAX_TOKENS)
                    for _ in range(NUM_GENERATIONS)
                ]
            speeds[name].append(
                statistics.median(MAX_TOKENS / sum(each.step_s) for each in generations)
            )
            num_drafted[name] += sum(each.drafts.num_drafted for each in generations)
            logger.info("pair %d: %s: %.1f tokens/s", pair + 1, name, speeds[name][-1])
    num_tokens = num_pairs * NUM_GENERATIONS * MAX_TOKENS
    return PlainSteps(
        model.name,
        preload,
        speeds,
        {name: count / num_tokens for name, count in num_drafted.items()},
        {name: ratios(speeds[name], speeds[REFERENCE]) for name in speeds if name != REFERENCE},
        ratios(speeds[OWN], speeds[OWN + OTHER]) if OWN + OTHER in speeds else None,
    )


def markdown(found: PlainSteps) -> str:
    """A Markdown table with one row per system: median, quartiles and extremes of the ratios."""
    rows = []
    for name, speeds in found.tokens_per_s.items():
        ratio = found.ratios.get(name)
        rows.append(
            [
                f"{name}, {', '.join(found.preload) or 'nothing'} preloaded",
                f"{statistics.median(speeds):.1f}",
                spread(ratio, 3) if ratio else NOT_MEASURED,
                f"{ratio.min:.3f} to {ratio.max:.3f}" if ratio else NOT_MEASURED,
                f"{found.drafted[name]:.3f}",
            ]
        )
    text = table(["system", "tokens/s", "over plain", "single pairs", "drafts per token"], rows)
    if found.own_over_other is not None:
        text += f"\n\nThis checkout over the other: {spread(found.own_over_other, 3)}"
    return text


def measure_all(
    args: argparse.Namespace,
    *,
    preloads: Sequence[list[str]] | None = None,
    model_name: str = UNTRAINED,
    num_pairs: int = NUM_PAIRS,
    against: Path | None = None,
) -> str:
    """Write JSON and Markdown; returns the latter.

    Args:
        args: How the processes run, and the folder for results.
        preloads: Lists of libraries to measure with; default: none, then all installed.
        model_name: The first prompt of this model is decoded.
        num_pairs: Processes of each system.
        against: Another checkout to measure.
    """
    model = prepare(model_name)
    logs = args.output / "logs" / "plain-steps"
    logs.mkdir(parents=True, exist_ok=True)
    known = systems_of(model, 1, args.eager, max_num_seqs=MAX_NUM_SEQS)
    systems = {name: known[name] for name in (REFERENCE, OWN)}
    systems = with_other(systems, against, args.output)
    found = []
    if preloads is None:
        preloads = [[], installed_preloads()] if installed_preloads() else [[]]
    for preload in preloads:
        env = os.environ | child_variables(preload, args.num_threads, args.bind)
        measured = measure(model, systems, env, preload=preload, num_pairs=num_pairs, folder=logs)
        found.append(measured)
    about = (
        f"{model.description}; one prompt, {MAX_TOKENS} tokens, {NUM_GENERATIONS} generations per "
        f"process, {num_pairs} processes of each system in turn."
    )
    text = "\n\n".join([about, *map(markdown, found)])
    (args.output / "plain_steps.md").write_text(text + "\n", encoding="utf-8")
    entries = [dataclasses.asdict(each) for each in found]
    (args.output / "plain_steps.json").write_text(json.dumps(entries, indent=1) + "\n")
    return text


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plain_steps",
        description="Speed over plain vLLM when drafts do not pay and drafting stops.",
    )
    parser.add_argument("--model", choices=MODELS, default=UNTRAINED, metavar="NAME")
    parser.add_argument("--pairs", type=positive, default=NUM_PAIRS, metavar="N")
    add_process_arguments(parser)
    parser.set_defaults(preload=None)
    add_against(parser)
    parser.add_argument("--output", type=Path, default=Path("build/bench"), metavar="FOLDER")
    args = parser.parse_args(argv)
    set_up_process()
    text = measure_all(
        args,
        preloads=None if args.preload is None else [args.preload],
        model_name=args.model,
        num_pairs=args.pairs,
        against=args.against,
    )
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
