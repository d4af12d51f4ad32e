"""`make demo`: a model served plainly and with self-speculation, measured in turns and compared."""

from __future__ import annotations

import argparse
import logging
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from layerskip_vllm.demo.comparison import Figures, Round, median_round
from layerskip_vllm.demo.method import method
from layerskip_vllm.demo.models import MODELS, DemoModel, Prompt
from layerskip_vllm.demo.race import Lane, photo_finish, replay
from layerskip_vllm.demo.report import report, save_picture
from layerskip_vllm.demo.screen import LaneFrame, Screen, frame
from layerskip_vllm.demo.session import Session, open_session

NUM_WARM_UP_PROMPTS = 4
"""After fewer, the first counted rounds are slower than the others: `self:auto` still learns."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `layerskip-vllm demo`'s arguments."""
    parser.add_argument("--model", choices=MODELS, default="python-10m")
    parser.add_argument("--exit-layer", type=int, metavar="E", help="default: self:auto chooses")
    parser.add_argument(
        "--num-speculative-tokens", type=int, metavar="K", help="default: the plugin's"
    )
    parser.add_argument("--num-prompts", type=_positive, default=3)
    parser.add_argument("--max-tokens", type=_positive, default=128, help="tokens per prompt")
    parser.add_argument(
        "--rounds", type=_positive, metavar="N", help="default: what suits the model"
    )
    parser.add_argument(
        "--save", type=Path, metavar="SVG", help="picture of the race and the table"
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo; returns the exit code: 0 where every text equals plain decoding's."""
    if args.save and not args.save.parent.is_dir():
        raise ValueError(f"--save {args.save}: {args.save.parent} is no directory")
    # As Ctrl-C does: unwind, and so stop the servers, instead of dying on the spot.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("layerskip_vllm").setLevel(logging.INFO)
    console = Console()
    model = MODELS[args.model]
    console.print(f"[bold]{model.name}[/]: {model.description}", soft_wrap=True)
    try:
        return _compare(console, model, args)
    except KeyboardInterrupt:
        console.print("\nInterrupted; the servers are stopped.")
        return 130


def _compare(console: Console, model: DemoModel, args: argparse.Namespace) -> int:
    """Measure, replay, report and save."""
    known = model.prompts()
    prompts, warm_up = known[: args.num_prompts], known[-NUM_WARM_UP_PROMPTS:]
    name = "self:auto" if args.exit_layer is None else f"self:{args.exit_layer}"
    num_rounds = args.rounds or model.num_rounds
    lanes = [LaneFrame("plain vLLM"), LaneFrame(f"vLLM, {name}")]
    flags = ["--speculative-model", name]
    if args.num_speculative_tokens is not None:
        flags += ["--num-speculative-tokens", str(args.num_speculative_tokens)]
    started = time.perf_counter()
    with (
        tempfile.TemporaryDirectory(prefix="layerskip-demo-") as logs,
        Screen(console, lanes) as screen,
    ):
        screen.say(f"Starting `vllm serve` twice: plain, and with {' '.join(flags)} ...")
        with open_session(screen, model, flags, args.max_tokens, Path(logs)) as session:
            screen.say(f"Servers ready after {time.perf_counter() - started:.0f} s")
            screen.say(f"Warm-up, not counted: {name} learns when drafting pays ...")
            session.warm_up(warm_up)
            rounds = _measure(session, prompts, num_rounds)
            measured = method(model, len(prompts), num_rounds, session.servers[0].read_log())
            screen.say("Stopping the servers ...")
        race, caption = _race(lanes, prompts, rounds)
        if console.is_terminal:
            screen.say(f"Replay in real time of {caption}")
            replay(screen, race)
    summary = report(measured, prompts, name, rounds)
    console.print(summary)
    console.print(model.remark)
    if args.save:
        save_picture(args.save, frame(photo_finish(race), f"Finish of {caption}"), summary)
    return 0 if Figures.of(rounds).same_text else 1


def _measure(session: Session, prompts: Sequence[Prompt], num_rounds: int) -> list[Round]:
    """Run the rounds; the servers take turns at being the first."""
    rounds: list[Round] = []
    session.screen.say(f"Measuring {num_rounds} rounds, one server at a time ...")
    for number in range(num_rounds):
        rounds.append(session.measure(prompts, first=number % 2))
        speed_ups = " ".join(f"{each.speed_up:.2f}x" for each in rounds)
        session.screen.say(f"{len(rounds)} of {num_rounds} rounds measured: {speed_ups}")
    return rounds


def _race(
    lanes: Sequence[LaneFrame], prompts: Sequence[Prompt], rounds: Sequence[Round]
) -> tuple[list[Lane], str]:
    """The round to replay, and which it is."""
    index = median_round(rounds)
    shown = rounds[index]
    race = [
        Lane(lane.title, prompts, streams)
        for lane, streams in zip(lanes, (shown.plain, shown.speculated), strict=True)
    ]
    caption = (
        f"round {index + 1} of {len(rounds)}, the median ({shown.speed_up:.2f}x); "
        "one server was measured at a time."
    )
    return race, caption


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} must be at least 1")
    return number
