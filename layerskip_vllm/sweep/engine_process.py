"""The parent's handle on a process that holds one vLLM engine.

Messages are JSON lines: data from a process is never run as code.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from layerskip_vllm.measure.decoding import DraftCounts
from layerskip_vllm.sweep.plan import EngineSetup

STOP_LIMIT_S = 30

ENVIRONMENT = {
    # vLLM's ahead-of-time compilation recompiles at every start; its default cache does not.
    "VLLM_USE_AOT_COMPILE": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Defaults of the engines' processes; the user's environment wins."""

GENERIC_ERROR = "Engine core initialization failed"
"""vLLM's last error at a failed start; the cause comes before it in the log."""


class EngineError(RuntimeError):
    """An engine failed to start or to decode."""


@dataclass(frozen=True)
class Speed:
    """What one turn gave."""

    tokens_per_s: float
    drafts: DraftCounts


class EngineProcess:
    """A started engine. It computes only in calls; between them it waits for the next.

    Attributes:
        device: What it runs on.
    """

    def __init__(self, name: str, start: Mapping[str, object], log: Path) -> None:
        """Start it and wait until it is ready.

        Args:
            name: For errors.
            start: The first message; see `worker.py`.
            log: File for its output.

        Raises:
            EngineError: It did not become ready.
        """
        self.name, self.log = name, log
        ours, theirs = socket.socketpair()
        with log.open("w", encoding="utf-8") as file:
            self._process = subprocess.Popen(
                # -P: not the packages of the current folder, which this process does not use.
                [sys.executable, "-P", "-m", "layerskip_vllm.sweep.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                env=ENVIRONMENT | os.environ,
                # Ctrl-C is for the parent; it ends its engines in order.
                start_new_session=True,
            )
        theirs.close()
        self._lines = ours.makefile("rw", encoding="utf-8")
        ours.close()
        try:
            self.device = str(self._call(start)["device"])
        except BaseException:
            self.close()
            raise

    def measure(
        self,
        batches: Sequence[Sequence[Sequence[int]]],
        max_tokens: int,
        temperature: float,
        num_speculative_tokens: int | None,
    ) -> Speed:
        """Decode batches, one after another.

        Args:
            batches: [num_batches][batch_size], token ids of prompts.
            max_tokens: Output tokens of each request.
            temperature: Of each request.
            num_speculative_tokens: K; None in plain vLLM.

        Raises:
            EngineError: vLLM raised, or the process ended.
        """
        answer = self._call(
            {
                "batches": batches,
                "max_tokens": max_tokens,
                "temperature": temperature,
                "num_speculative_tokens": num_speculative_tokens,
            }
        )
        drafts = DraftCounts(**answer["drafts"])  # type: ignore[arg-type]
        return Speed(float(answer["tokens_per_s"]), drafts)  # type: ignore[arg-type]

    def close(self) -> None:
        """End the process and all processes that it started."""
        with contextlib.suppress(OSError):
            self._lines.close()  # the worker ends at the end of its messages
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_LIMIT_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _call(self, message: Mapping[str, object]) -> dict[str, object]:
        line = ""
        with contextlib.suppress(OSError):
            self._lines.write(json.dumps(message) + "\n")
            self._lines.flush()
            line = self._lines.readline()
        if not line:
            code = self._process.wait()
            raise self._error(f"its process ended with exit code {code}")
        answer = json.loads(line)
        if "error" in answer:
            raise self._error(answer["error"])
        return answer

    def _error(self, reason: str) -> EngineError:
        cause = _last_error(self.log) if GENERIC_ERROR in reason or "ended" in reason else None
        return EngineError(f"{self.name}: {cause or reason} (log: {self.log})")


class Engines:
    """Starts engines when they are needed; keeps one alive at a time, or all."""

    def __init__(self, start: Callable[[EngineSetup], EngineProcess], keep: bool) -> None:
        """Start none yet.

        Args:
            start: Starts an engine.
            keep: Keep all alive. One at a time is what fits a GPU.
        """
        self._start, self._keep = start, keep
        self._alive: dict[EngineSetup, EngineProcess] = {}

    def get(self, setup: EngineSetup) -> EngineProcess:
        """The engine of this setup.

        Raises:
            EngineError: It did not start.
        """
        if setup not in self._alive:
            if not self._keep:
                self.close()
            self._alive[setup] = self._start(setup)
        return self._alive[setup]

    def is_alive(self, setup: EngineSetup) -> bool:
        """Whether the engine is started."""
        return setup in self._alive

    def close(self) -> None:
        """End all engines."""
        while self._alive:
            self._alive.popitem()[1].close()


def _last_error(log: Path) -> str | None:
    """The last error in a log that names a cause, or None."""
    found = re.findall(r"\b\w+(?:Error|Exception): .+", log.read_text(errors="replace"))
    return next((error for error in reversed(found) if GENERIC_ERROR not in error), None)
