"""Run the plan within the deadline; every result is on disk before the next job starts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.gpu.jobs import Job, JobProcess
from benchmarks.gpu.plan import Step
from benchmarks.gpu.records import Done, Failure, NotRun, Record, append, read
from benchmarks.gpu.report import markdown

logger = logging.getLogger(__name__)

LIMIT_FACTOR = 2.5
"""A job's time limit, as a multiple of its estimate."""

POLL_S = 0.3


class Results:
    """The two files of a run: the records, and the report that is rewritten after each of them."""

    def __init__(self, directory: Path) -> None:
        """Begin a run; the results of an earlier one in this directory are deleted."""
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "results.jsonl"
        self.report_path = directory / "report.md"
        self.path.write_text("")
        self._size = -1

    def add(self, record: Record) -> None:
        """Write a record of this process."""
        append(self.path, record)
        self.refresh()

    def refresh(self) -> None:
        """Rewrite the report if a job has written records since."""
        size = self.path.stat().st_size
        if size != self._size:
            self._size = size
            temporary = self.report_path.with_suffix(".tmp")
            temporary.write_text(self.report(), encoding="utf-8")
            temporary.rename(self.report_path)

    def report(self) -> str:
        """The report so far."""
        return markdown(list(read(self.path)))


class Runner:
    """Runs jobs until the deadline.

    Attributes:
        results: Of this run.
    """

    def __init__(
        self,
        results: Results,
        log_dir: Path,
        deadline_s: float,
        side_by_side: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The time starts now.

        Args:
            results: Where jobs write.
            log_dir: For the output of jobs.
            deadline_s: Seconds for everything.
            side_by_side: Most jobs of a step at a time.
            clock: Seconds since some moment.
        """
        self.results = results
        self._log_dir = log_dir
        self._side_by_side = side_by_side
        self._clock = clock
        self._end = clock() + deadline_s
        log_dir.mkdir(parents=True, exist_ok=True)

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self._end - self._clock()

    def run(self, steps: Sequence[Step]) -> None:
        """Run all steps that fit. It skips a step that does not fit; a later, shorter one may fit.

        It begins a step of several jobs if the longest one fits, and skips its waiting jobs when
        time gets short.
        """
        for step in steps:
            self._run_step(list(step))

    def _run_step(self, waiting: list[Job]) -> None:
        running: list[JobProcess] = []
        try:
            while waiting or running:
                while waiting and len(running) < self._side_by_side:
                    job = waiting.pop(0)
                    reason = self._why_not(job)
                    if reason is None:
                        running.append(self._start(job))
                    else:
                        logger.info("%s: not run: %s", job.name, reason)
                        self.results.add(NotRun(job.name, reason))
                running = [process for process in running if not self._has_ended(process)]
                self.results.refresh()
                if running:
                    time.sleep(POLL_S)
        finally:
            for process in running:
                process.kill()
            self.results.refresh()

    def _why_not(self, job: Job) -> str | None:
        if job.requires is not None and not Path(job.requires).exists():
            return f"its model was not made ({Path(job.requires).parent.name})"
        if self.left_s < job.needs_s:
            return f"{max(self.left_s, 0):.0f} s left, needs {job.needs_s:.0f} s"
        return None

    def _start(self, job: Job) -> JobProcess:
        limit_s = min(self.left_s, LIMIT_FACTOR * job.needs_s)
        logger.info("%s: started, %.0f s left", job.name, self.left_s)
        return JobProcess(job, self.results.path, self._log_dir, limit_s)

    def _has_ended(self, process: JobProcess) -> bool:
        outcome = process.poll()
        if outcome is None:
            return False
        if isinstance(outcome, Done):
            logger.info("%s: done in %.0f s", outcome.job, outcome.seconds)
        elif isinstance(outcome, Failure):
            logger.warning("%s: %s; its log: %s", outcome.job, outcome.reason, process.log)
        self.results.add(outcome)
        return True
