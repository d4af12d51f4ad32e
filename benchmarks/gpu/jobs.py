"""A job of the check: a task that runs in a process of its own, with a time limit and a log."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from benchmarks.environment import REPOSITORY
from benchmarks.gpu.records import Done, Failure

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from benchmarks.gpu.records import Emit

LOG_TAIL_LINES = 15
LOG_LINE_CHARS = 200
STOP_LIMIT_S = 5


if TYPE_CHECKING:

    class Task(DataclassInstance, Protocol):
        """The work of a job: a dataclass of JSON values."""

        def run(self, emit: Emit) -> None:
            """Do it in this process, and emit each result as soon as it is known."""


@dataclass(frozen=True)
class Job:
    """A task and its settings.

    Attributes:
        name: In the report, the log's name and progress lines.
        part: Group of jobs that the command line can choose.
        task: Its work.
        needs_s: Seconds that it takes on one H100 or H200 with cold caches.
        variables: Environment of its process, in addition to this process's.
        requires: A file that an earlier job makes.
    """

    name: str
    part: str
    task: Task
    needs_s: float
    variables: Mapping[str, str] = field(default_factory=dict)
    requires: str | None = None

    @property
    def file_name(self) -> str:
        """The name without characters that a file's name should not have."""
        return re.sub(r"[^\w.]+", "-", self.name).strip("-")


class JobProcess:
    """A job that runs."""

    def __init__(self, job: Job, results: Path, log_dir: Path, limit_s: float) -> None:
        """Start it.

        Args:
            job: The job to run.
            results: File to which the process appends its records.
            log_dir: Directory for its output.
            limit_s: Seconds after which `poll` kills it.
        """
        self.job = job
        self.limit_s = limit_s
        self.log = log_dir / f"{job.file_name}.log"
        self._started = time.monotonic()
        task = json.dumps({"task": type(job.task).__name__, "arguments": asdict(job.task)})
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu.worker", str(results), task],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, **job.variables},
                cwd=REPOSITORY,
                # Ctrl-C is for the parent; it ends the processes of its jobs.
                start_new_session=True,
            )

    def poll(self) -> Done | Failure | None:
        """Its outcome; None while it runs within its limit."""
        seconds = time.monotonic() - self._started
        exit_code = self.process.poll()
        if exit_code is None and seconds < self.limit_s:
            return None
        self.kill()
        if exit_code == 0:
            return Done(self.job.name, seconds)
        reason = (
            f"stopped after {seconds:.0f} s, its limit"
            if exit_code is None
            else f"ended with exit code {exit_code} after {seconds:.0f} s"
        )
        return Failure(self.job.name, reason, self.log_tail())

    def kill(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_LIMIT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def log_tail(self) -> list[str]:
        """The last lines of its output."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line[:LOG_LINE_CHARS] for line in lines if line.strip()][-LOG_TAIL_LINES:]


def end_with_parent() -> None:
    """End this process soon after the one that started it, even if that was killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
