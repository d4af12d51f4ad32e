"""`python -m benchmarks.compare`: all systems on the same prompts, in one run."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from benchmarks import plain_steps
from benchmarks.against import OTHER, with_other
from benchmarks.arguments import add_against, add_process_arguments, positive, set_up_process
from benchmarks.environment import Environment, child_variables
from benchmarks.figures import model_result
from benchmarks.forward_time import ROW_COUNTS
from benchmarks.models import DEFAULT_MODELS, MODELS, PreparedModel, prepare
from benchmarks.plots import draw
from benchmarks.report import markdown, speeds
from benchmarks.result import ModelResult, save
from benchmarks.rounds import REFERENCE, Schedule
from benchmarks.run import Run
from benchmarks.systems import MAX_NUM_SEQS, SYSTEMS, table
from layerskip_vllm.config import DEFAULT_NUM_SPECULATIVE_TOKENS

logger = logging.getLogger(__name__)

BATCH_SIZES = (1, 2, 4, 8, 16)

SMOKE = {
    "model": ["small"],
    "batch_size": [1, 2],
    "num_rounds": 1,
    "num_starts": 0,
    "eager": True,
}
"""Defaults under `--smoke`; explicit arguments override them."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 1 if a float32 text differs from plain's."""
    args = parse_arguments(argv)
    set_up_process()
    args.output.mkdir(parents=True, exist_ok=True)
    results = []
    # Prepare all first, so that anything missing fails before hours of measuring.
    for model in [prepare(name) for name in args.model]:
        result = measure_model(model, args)
        draw(result, args.output / f"{model.name}.png")
        results.append(result)
        # Save after each model, so that a later failure loses nothing.
        save(results, args.output / "results.json")
        (args.output / "report.md").write_text(markdown(results), encoding="utf-8")
        print(f"\n{model.name}: {result.description}\n\n{speeds(result)}\n", flush=True)
    if plain_steps.UNTRAINED in args.model and not args.no_plain_steps:
        text = plain_steps.measure_all(args, against=args.against)
        with (args.output / "report.md").open("a", encoding="utf-8") as report:
            report.write(f"\n## Steps without drafts\n\n{text}\n")
        print(text, flush=True)
    logger.info("results are in %s", args.output)
    return int(any(result.dtype == "float32" and not result.is_exact for result in results))


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description="Compare ways to decode, in one run."
    )
    add_arguments(parser)
    if parser.parse_args(argv).smoke:
        parser.set_defaults(**SMOKE)
    args = parser.parse_args(argv)
    if max(row_counts(args)) > MAX_NUM_SEQS:
        parser.error(
            f"batch size * (K + 1) = {max(row_counts(args))} must be at most {MAX_NUM_SEQS}, the "
            "limit of concurrent requests"
        )
    others = [name for name in args.system if not name.startswith((REFERENCE, "self"))]
    if args.temperature < 0:
        parser.error(f"--temperature {args.temperature:g} must be at least 0")
    if args.temperature and others:
        parser.error(
            f"--temperature {args.temperature:g}: {', '.join(others)} would not give plain's text; "
            "name others by --system"
        )
    return args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line's arguments."""
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--model",
        nargs="+",
        choices=MODELS,
        default=list(DEFAULT_MODELS),
        metavar="NAME",
        help=f"of {', '.join(MODELS)}; default: {' '.join(DEFAULT_MODELS)}",
    )
    what.add_argument(
        "--system",
        nargs="+",
        choices=SYSTEMS,
        default=list(SYSTEMS),
        metavar="NAME",
        help=f"of {', '.join(SYSTEMS)}; default: all; {REFERENCE} is always included",
    )
    add_against(what)
    what.add_argument(
        "--batch-size", nargs="+", type=positive, default=list(BATCH_SIZES), metavar="N"
    )
    what.add_argument(
        "--num-speculative-tokens",
        type=positive,
        default=DEFAULT_NUM_SPECULATIVE_TOKENS,
        metavar="K",
    )
    what.add_argument(
        "--temperature", type=float, default=0.0, help="above 0 each request has a seed"
    )
    what.add_argument("--no-forward-times", action="store_true", help="without t(M) and the ideal")
    what.add_argument("--no-step-breakdown", action="store_true", help="without step breakdowns")
    what.add_argument(
        "--no-plain-steps", action="store_true", help="without the cost of steps without drafts"
    )
    length = parser.add_argument_group("how long")
    length.add_argument("--num-rounds", type=positive, default=5, help="after one that warms up")
    length.add_argument(
        "--max-tokens", type=positive, help="output per request; default depends on the model"
    )
    length.add_argument("--num-starts", type=int, default=3, help="timed starts; 0 for none")
    length.add_argument("--smoke", action="store_true", help="a tiny model, as a quick check")
    add_process_arguments(parser.add_argument_group("how every system runs"))
    parser.add_argument("--output", type=Path, default=Path("build/bench"), metavar="FOLDER")


def measure_model(model: PreparedModel, args: argparse.Namespace) -> ModelResult:
    """Measure all systems on one model."""
    systems = table(model, args.num_speculative_tokens, args.eager)
    systems = {name: systems[name] for name in systems if name in {REFERENCE, *args.system}}
    systems = with_other(systems, args.against, args.output)
    variables = child_variables(args.preload, args.num_threads, args.bind)
    schedule = Schedule(
        batch_sizes=args.batch_size,
        num_rounds=args.num_rounds,
        max_tokens=args.max_tokens or model.max_tokens,
        temperature=args.temperature,
        row_counts=() if args.no_forward_times else row_counts(args),
        with_breakdown=()
        if args.no_step_breakdown
        else [
            name
            for name, system in systems.items()
            # The stopwatch only knows this checkout's package.
            if system.engine == "vllm" and not name.endswith(OTHER)
        ],
    )
    log_dir = args.output / "logs" / model.name
    log_dir.mkdir(parents=True, exist_ok=True)
    run = Run(model, systems, schedule, os.environ | variables, log_dir)
    starts = run.measure_starts(args.num_starts)
    names = run.group_names()
    groups = run.measure_groups(names)
    environment = Environment.read(variables)
    return model_result(run, args.num_speculative_tokens, environment, names, groups, starts)


def row_counts(args: argparse.Namespace) -> list[int]:
    """Every M to measure: the default row counts and those of the requested batch sizes."""
    verify = {batch_size * (args.num_speculative_tokens + 1) for batch_size in args.batch_size}
    return sorted({*ROW_COUNTS, *args.batch_size, *verify})


if __name__ == "__main__":
    raise SystemExit(main())
