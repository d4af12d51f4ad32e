"""`python -m benchmarks.mixed_load`: throughput while prompts keep arriving."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from benchmarks.against import with_other
from benchmarks.arguments import add_against, add_process_arguments, positive, set_up_process
from benchmarks.child import Child, children
from benchmarks.environment import child_variables
from benchmarks.load import Arrival, LoadFigures, arrivals
from benchmarks.markdown import spread, table
from benchmarks.models import MODELS, PreparedModel, prepare
from benchmarks.rounds import decode
from benchmarks.systems import SYSTEMS
from benchmarks.systems import table as systems_of
from layerskip_vllm.config import DEFAULT_NUM_SPECULATIVE_TOKENS
from layerskip_vllm.measure.spread import Spread, ratios

logger = logging.getLogger(__name__)

OVERLOAD = 2
"""Default arrival rate, relative to what the first system can serve. Its slots stay full, so that
output tokens/s is its capacity."""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mixed_load",
        description="Output tokens/s and time per output token while prompts keep arriving.",
    )
    parser.add_argument("--model", choices=MODELS, default="trained", metavar="NAME")
    parser.add_argument(
        "--system",
        nargs="+",
        choices=[name for name in SYSTEMS if not name.startswith("transformers")],
        default=["plain", "self"],
        metavar="NAME",
        help="the first one is the reference of the others",
    )
    parser.add_argument(
        "--num-speculative-tokens",
        type=positive,
        default=DEFAULT_NUM_SPECULATIVE_TOKENS,
        metavar="K",
    )
    parser.add_argument("--num-rounds", type=positive, default=5, help="after one that warms up")
    parser.add_argument("--num-requests", type=positive, default=24, help="per round")
    parser.add_argument("--slots", type=positive, default=4, help="requests that run at a time")
    parser.add_argument("--arrivals", choices=("poisson", "fixed"), default="poisson")
    parser.add_argument(
        "--interval",
        type=float,
        metavar="SECONDS",
        help="mean interval; default: half the time that the first system needs per request",
    )
    parser.add_argument("--max-tokens", type=positive, help="default depends on the model")
    parser.add_argument("--seed", type=int, default=0)
    add_process_arguments(parser)
    add_against(parser)
    parser.add_argument("--output", type=Path, default=Path("build/bench"), metavar="FOLDER")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = parse_arguments(argv)
    set_up_process()
    found = measure(prepare(args.model), args)
    text = markdown(found)
    entries = {name: [dataclasses.asdict(f) for f in figures] for name, figures in found.items()}
    (args.output / "mixed_load.json").write_text(json.dumps(entries) + "\n")
    (args.output / "mixed_load.md").write_text(text + "\n")
    print(text)
    return 0


def measure(model: PreparedModel, args: argparse.Namespace) -> dict[str, list[LoadFigures]]:
    """Give each system the same loads in turn, in reverse order every other round."""
    logs = args.output / "logs" / "mixed-load"
    logs.mkdir(parents=True, exist_ok=True)
    max_tokens = args.max_tokens or model.max_tokens
    found: dict[str, list[LoadFigures]] = {}
    known = systems_of(model, args.num_speculative_tokens, args.eager, max_num_seqs=args.slots)
    systems = with_other({name: known[name] for name in args.system}, args.against, args.output)
    env = os.environ | child_variables(args.preload, args.num_threads, args.bind)
    with children(systems, env, logs) as started:
        interval_s = args.interval or _interval_s(model, started, args.slots, max_tokens)
        logger.info("an arrival every %.3f s", interval_s)
        for index in range(args.num_rounds + 1):
            load = arrivals(
                model.prompts[index * args.num_requests :] + model.prompts,
                num_requests=args.num_requests,
                interval_s=interval_s,
                max_tokens=max_tokens,
                poisson=args.arrivals == "poisson",
                seed=args.seed + index,
            )
            for name in list(started)[:: 1 if index % 2 else -1]:
                figures = _load(started[name], load)
                logger.info("round %d: %s: %.1f tokens/s", index, name, figures.tokens_per_s)
                if index > 0:
                    found.setdefault(name, []).append(figures)
    return found


def _interval_s(
    model: PreparedModel, started: Mapping[str, Child], slots: int, max_tokens: int
) -> float:
    first = next(iter(started.values()))
    for _ in range(2):  # the first one warms up
        decoding = decode(first, model.prompts[:slots], max_tokens)
    return sum(decoding.step_s) / slots / OVERLOAD


def _load(child: Child, load: list[Arrival]) -> LoadFigures:
    figures = child.call("load", load=load)
    assert isinstance(figures, LoadFigures)
    return figures


def markdown(found: Mapping[str, list[LoadFigures]]) -> str:
    """A Markdown table with one row per system; ratios are taken round by round."""
    speeds = {name: [f.tokens_per_s for f in figures] for name, figures in found.items()}
    times = {name: [f.time_per_output_token_ms for f in figures] for name, figures in found.items()}
    first, texts = next(iter(found)), [f.token_ids for f in next(iter(found.values()))]
    rows = []
    for name, figures in found.items():
        num_equal = sum(f.token_ids == ids for f, ids in zip(figures, texts, strict=True))
        rows.append(
            [
                name,
                spread(Spread.of(speeds[name]), 1),
                spread(ratios(speeds[name], speeds[first]), 3),
                spread(Spread.of(times[name]), 2),
                spread(ratios(times[name], times[first]), 3),
                f"{num_equal} of {len(figures)}",
            ]
        )
    header = ["system", "tokens/s", f"over {first}'s", "ms per token", f"over {first}'s"]
    return table([*header, f"rounds with texts equal to {first}'s"], rows)


if __name__ == "__main__":
    raise SystemExit(main())
