"""The parent's handle on a child process that holds one system."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.memory import Memory
from benchmarks.messages import Failure, Ready
from benchmarks.systems import System

STOP_LIMIT_S = 30


class ChildError(RuntimeError):
    """A child failed to start or to run a command."""


class Child:
    """A started system. It computes only during calls; between them it waits at its socket.

    Attributes:
        start_s: Seconds from the start of the process until it was ready, imports included.
        ready: Its report when it was ready.
    """

    def __init__(self, system: System, env: Mapping[str, str], log: Path) -> None:
        """Start it and wait until it is ready.

        Args:
            system: The system to start.
            env: Environment of the process, without the system's own variables.
            log: File for its output.

        Raises:
            ChildError: It did not become ready.
        """
        self.name = system.name
        self.log = log
        ours, theirs = socket.socketpair()
        started = time.perf_counter()
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                env={**env, **system.variables},
                # Ctrl-C is for the parent; it closes its children in order.
                start_new_session=True,
            )
        theirs.close()
        self._connection = Connection(ours.detach())
        self._connection.send((system.engine, dict(system.arguments)))
        try:
            ready = self._receive("start")
        except BaseException:
            self.close()
            raise
        self.start_s = time.perf_counter() - started
        assert isinstance(ready, Ready)
        self.ready = ready

    def call(self, method: str, **arguments: object) -> object:
        """Run one of the worker's methods and return its result.

        Raises:
            ChildError: The method raised, or the process ended.
        """
        self._connection.send((method, arguments))
        return self._receive(method)

    def memory(self) -> Memory:
        """Memory of the child since it was ready."""
        memory = self.call("memory")
        assert isinstance(memory, Memory)
        return memory

    def close(self) -> None:
        """End the process and all processes that it started."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_LIMIT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._connection.close()

    def _receive(self, asked: str) -> object:
        try:
            answer = self._connection.recv()
        except (EOFError, ConnectionResetError):
            answer = Failure(f"the process ended with exit code {self.process.wait()}")
        if isinstance(answer, Failure):
            raise ChildError(f"{self.name}: {asked}: {answer.traceback}\nits log: {self.log}")
        return answer


@contextmanager
def children(
    systems: Mapping[str, System], env: Mapping[str, str], log_dir: Path
) -> Generator[dict[str, Child]]:
    """Start systems one after another, and stop all their processes at the end."""
    started: dict[str, Child] = {}
    try:
        for name, system in systems.items():
            started[name] = Child(system, env, log_dir / f"{name}.log")
        yield started
    finally:
        for child in started.values():
            child.close()
