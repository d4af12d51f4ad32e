"""`python -m benchmarks.compare`: all systems on the same prompts, in one run."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import signal
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from benchmarks.environment import PRELOADS, Environment, child_variables
from benchmarks.figures import model_result
from benchmarks.forward_time import ROW_COUNTS
from benchmarks.models import DEFAULT_MODELS, MODELS, PreparedModel
from benchmarks.plots import draw
from benchmarks.report import markdown, thresholds
from benchmarks.result import ModelResult, save
from benchmarks.rounds import REFERENCE, Schedule
from benchmarks.run import Run
from benchmarks.systems import table
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
"""What `--smoke` changes, unless it is said otherwise beside it."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 1 where a float32 text differs from plain's."""
    args = parse_arguments(argv)
    # As Ctrl-C does: unwind, and so stop the children, instead of dying on the spot.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("benchmarks").setLevel(logging.INFO)
    args.output.mkdir(parents=True, exist_ok=True)
    results = []
    # All of them first: what is missing shows before hours of measuring.
    for model in [prepare(name) for name in args.model]:
        result = measure_model(model, args)
        draw(result, args.output / f"{model.name}.png")
        results.append(result)
        # After each model: what is measured so far outlives a failure of the next one.
        save(results, args.output / "results.json")
        (args.output / "report.md").write_text(markdown(results), encoding="utf-8")
        print(f"\n{model.name}: {result.description}\n\n{thresholds(result)}\n", flush=True)
    logger.info("everything is in %s", args.output)
    return int(any(result.dtype == "float32" and not result.is_exact for result in results))


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description="Compare ways to decode, in one run."
    )
    add = parser.add_argument
    add("--model", nargs="+", choices=MODELS, default=list(DEFAULT_MODELS), metavar="NAME",
        help=f"of {', '.join(MODELS)}; default: {' '.join(DEFAULT_MODELS)}")  # fmt: skip
    add("--system", nargs="+", metavar="NAME", help="default: all; plain always takes part")
    add("--batch-size", nargs="+", type=int, default=list(BATCH_SIZES), metavar="N")
    add("--num-rounds", type=int, default=5, help="that count, after one that warms up")
    add("--max-tokens", type=int, help="output tokens per request; default: what suits the model")
    add("--num-speculative-tokens", type=int, default=DEFAULT_NUM_SPECULATIVE_TOKENS, metavar="K")
    add("--eager", action="store_true", help="run vLLM without compilation")
    add("--preload", nargs="*", choices=PRELOADS, default=[], help="libraries for every system")
    add("--num-threads", type=int, default=len(os.sched_getaffinity(0)), metavar="N",
        help="OpenMP threads of every system; default: one per core")  # fmt: skip
    add("--bind", action="store_true", help="bind each OpenMP thread to a core of its own")
    add("--num-starts", type=int, default=3, help="timed starts of the systems whose start counts")
    add("--no-forward-times", action="store_true", help="leave out t(M), and so the ideal")
    add("--no-where", action="store_true", help="leave out where the time goes")
    add("--smoke", action="store_true", help="a short run on a tiny model, to see that all works")
    add("--output", type=Path, default=Path("build/bench"), metavar="FOLDER")
    if parser.parse_args(argv).smoke:
        parser.set_defaults(**SMOKE)
    return parser.parse_args(argv)


def prepare(name: str) -> PreparedModel:
    """Prepare a model in a process of its own, whose memory is then free again."""
    logger.info("%s: preparing", name)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as executor:
        return executor.submit(MODELS[name].prepare).result()


def measure_model(model: PreparedModel, args: argparse.Namespace) -> ModelResult:
    """Measure all systems on one model."""
    systems = table(model, args.num_speculative_tokens, args.eager)
    if args.system:
        systems = {name: systems[name] for name in systems if name in {REFERENCE, *args.system}}
    variables = child_variables(tuple(args.preload), args.num_threads, args.bind)
    schedule = Schedule(
        batch_sizes=args.batch_size,
        num_rounds=args.num_rounds,
        max_tokens=args.max_tokens or model.max_tokens,
        row_counts=() if args.no_forward_times else row_counts(args),
        where=not args.no_where,
    )
    log_dir = args.output / "logs" / model.name
    log_dir.mkdir(parents=True, exist_ok=True)
    run = Run(model, systems, schedule, os.environ | variables, log_dir)
    starts = run.measure_starts(args.num_starts)
    names = run.group_names()
    groups = [run.measure_group(members) for members in names]
    environment = Environment.read(variables)
    return model_result(run, args.num_speculative_tokens, environment, names, groups, starts)


def row_counts(args: argparse.Namespace) -> list[int]:
    """Every M whose t(M) is wanted: the usual ones, and those of the batch sizes asked for."""
    verify = {batch_size * (args.num_speculative_tokens + 1) for batch_size in args.batch_size}
    return sorted({*ROW_COUNTS, *args.batch_size, *verify})


if __name__ == "__main__":
    raise SystemExit(main())
