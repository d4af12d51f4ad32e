"""Command-line arguments that several benchmarks share."""

from __future__ import annotations

import argparse
import logging
import os
import signal
from pathlib import Path

from benchmarks.environment import PRELOADS, installed_preloads


def set_up_process() -> None:
    """Log progress, and handle SIGTERM like Ctrl-C, which stops the children."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for name in ("benchmarks", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO)


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} must be at least 1")
    return number


def add_process_arguments(group: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Declare how a benchmark's processes run, mostly for `environment.child_variables`."""
    group.add_argument("--eager", action="store_true", help="vLLM without compilation")
    group.add_argument(
        "--preload",
        nargs="*",
        choices=PRELOADS,
        default=installed_preloads(),
        metavar="NAME",
        help=f"libraries, of {', '.join(PRELOADS)}; default: all installed; empty for none",
    )
    group.add_argument(
        "--num-threads",
        type=positive,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="OpenMP threads; default: one per core",
    )
    group.add_argument("--bind", action="store_true", help="bind each thread to its own core")


def add_against(parser: argparse._ArgumentGroup | argparse.ArgumentParser) -> None:
    """Declare `--against`."""
    parser.add_argument(
        "--against",
        type=Path,
        metavar="CHECKOUT",
        help="also measure the package in that checkout",
    )
