"""The process of a job: `python -m benchmarks.gpu.worker RESULTS TASK`, TASK in JSON."""

from __future__ import annotations

import faulthandler
import json
import logging
import signal
import sys
from functools import partial
from pathlib import Path

from benchmarks.gpu.exactness import ExactnessTask
from benchmarks.gpu.forwards import ForwardTask
from benchmarks.gpu.jobs import end_with_parent
from benchmarks.gpu.models import CheckpointTask
from benchmarks.gpu.records import append
from benchmarks.gpu.speed import SpeedTask

TASKS: dict[str, type[CheckpointTask | ExactnessTask | ForwardTask | SpeedTask]] = {
    task.__name__: task for task in (CheckpointTask, ExactnessTask, ForwardTask, SpeedTask)
}
"""The kinds of jobs, by the name in their JSON."""


def main() -> None:
    """Run the task; an exception ends the process, with its traceback in the log."""
    end_with_parent()
    logging.basicConfig(level=logging.INFO)
    # SIGTERM ends a job at its limit; the traceback then ends its log.
    faulthandler.register(signal.SIGTERM, chain=True)
    results, task = sys.argv[1:]
    values = json.loads(task)
    TASKS[values["task"]](**values["arguments"]).run(partial(append, Path(results)))


if __name__ == "__main__":
    main()
