"""`make gpu-check`: check `self:E` on this machine's GPU, and print a report for an issue.

It checks exactness first. Then it measures speed beside plain vLLM and its other drafters, and the
parts of a step. It writes each result at once, and names the jobs that do not fit
before the deadline.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from pathlib import Path

from benchmarks.arguments import positive, set_up_process
from benchmarks.gpu.engines import common_variables
from benchmarks.gpu.plan import PARTS, SIDE_BY_SIDE, steps
from benchmarks.gpu.records import Planned, read
from benchmarks.gpu.report import has_failed
from benchmarks.gpu.run import Results, Runner
from benchmarks.gpu.versions import read_machine, why_no_gpu

DEADLINE_S = 540
RESERVE_S = 10
"""Of the deadline, to end jobs, delete checkpoints and print the report."""

SHARED_MEMORY = Path("/dev/shm")
NEEDED_BYTES = 24 << 30
"""All checkpoints of the plan, with some room."""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--deadline",
        type=positive,
        default=DEADLINE_S,
        metavar="SECONDS",
        help="for everything; default: %(default)s, enough for the most important parts",
    )
    parser.add_argument(
        "--part",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        metavar="NAME",
        help=f"of {', '.join(PARTS)}; default: all, as far as the time goes",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("build/gpu"),
        metavar="DIRECTORY",
        help="for report.md, results.jsonl and logs, overwritten; default: %(default)s",
    )
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIRECTORY",
        help="for checkpoints of 18 GB, deleted at the end; default: shared memory, the system's "
        "temporary directory or that of the output, the first with room",
    )
    parser.add_argument(
        "--side-by-side",
        type=positive,
        default=min(SIDE_BY_SIDE, max(len(os.sched_getaffinity(0)) // 3, 1)),
        metavar="N",
        help="engines that run at a time where nothing is timed; default here: %(default)s",
    )
    return parser.parse_args(argv)


@contextlib.contextmanager
def work_directory(given: Path | None, output: Path) -> Generator[Path]:
    """A new directory for checkpoints, which the end of the block deletes."""
    candidates = (SHARED_MEMORY, Path(tempfile.gettempdir()))
    parent = given or next(filter(_has_room, candidates), output)
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=parent, prefix="layerskip-gpu-", ignore_cleanup_errors=True
    ) as directory:
        yield Path(directory)


def _has_room(directory: Path) -> bool:
    return directory.is_dir() and shutil.disk_usage(directory).free >= NEEDED_BYTES


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check.

    Returns:
        The exit status: 1 if there is no GPU, if anything failed, or after an interruption.
    """
    started = time.monotonic()
    args = parse_arguments(argv)
    if (missing := why_no_gpu()) is not None:
        print(missing, file=sys.stderr)
        return 1
    set_up_process()
    results = Results(args.output.resolve())
    is_interrupted = False
    try:
        _run(args, results, started)
    except KeyboardInterrupt:
        is_interrupted = True
        print("interrupted: the report holds what was measured", file=sys.stderr)
    print(results.report())
    print(f"report: {results.report_path}; records: {results.path}", file=sys.stderr)
    return int(is_interrupted or has_failed(list(read(results.path))))


def _run(args: argparse.Namespace, results: Results, started: float) -> None:
    """Run the plan, from `started` on, in seconds of the monotonic clock."""
    output = results.path.parent
    # The user's settings override ours.
    os.environ.update({k: v for k, v in common_variables().items() if k not in os.environ})
    left_s = args.deadline - RESERVE_S - (time.monotonic() - started)
    runner = Runner(results, output / "logs", left_s, args.side_by_side)
    with work_directory(args.work, output) as work_dir:
        plan = steps(work_dir.resolve(), args.part)
        left_out = [part for part in PARTS if part not in args.part]
        results.add(read_machine())
        results.add(Planned(args.deadline, [job.name for step in plan for job in step], left_out))
        runner.run(plan)


if __name__ == "__main__":
    sys.exit(main())
