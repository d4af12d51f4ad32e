"""A server under fault injection, whose processes and shared memory are watched."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import openai
import psutil

from layerskip_vllm.measure.server import Server, start
from tests.options import FIXED
from tests.server.servers import ENGINE_FLAGS, OFFLINE, user_environment

SPECULATION = (
    *("--speculative-model", "self:4"),
    *("--num-speculative-tokens", "3"),
    *("--additional-config", json.dumps({"layerskip": FIXED})),
)
LIMIT_S = 90
"""Time limit for anything that should happen without help."""

STREAM_TOKENS = 1900
CONTEXT = ("--max-model-len", "2048")
"""Room for a stream that outlasts a fault."""

STREAM_TIMEOUT_S = 20
"""The client of a stream hangs up after this time without a token."""

PROMPT = "Hello there"


class Watched:
    """A server under a fault. Its processes are those of its session."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.model, self.process, self.port = server.model, server.process, server.port
        self.wait_until_ready = server.wait_until_ready
        self._segments: set[Path] = set()

    @property
    def log(self) -> str:
        return self._server.read_log()

    def client(self, timeout_s: float = LIMIT_S) -> openai.OpenAI:
        """A client that gives up after `timeout_s` without a response."""
        return self._server.open_client(timeout_s)

    def complete(self) -> str:
        """A short greedy answer."""
        answer = self.client().completions.create(
            model=self.model, prompt=PROMPT, max_tokens=20, temperature=0
        )
        return answer.choices[0].text

    def processes(self) -> list[psutil.Process]:
        """All running processes, without zombies."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                of_session = os.getsid(process.pid) == self.process.pid
                if of_session and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def titled(self, title: str) -> psutil.Process:
        """The only process with this title: `EngineCore`, `Worker`."""
        titles = {process: " ".join(process.cmdline()) for process in self.processes()}
        (found,) = [p for p, text in titles.items() if f"::{title}" in text]
        return found

    def look_at_segments(self) -> None:
        """Remember the shared memory that the processes map, which is unknown once they end."""
        for process in self.processes():
            with contextlib.suppress(OSError):  # psutil's memory_maps() takes seconds
                maps = Path(f"/proc/{process.pid}/maps").read_text()
                self._segments |= {Path(path) for path in re.findall(r"/dev/shm/\S+", maps)}

    def leftovers(self) -> list[str]:
        """Processes and segments that remain after the server ended, waiting up to LIMIT_S."""
        deadline = time.monotonic() + LIMIT_S
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left

    def _left(self) -> list[str]:
        processes = [p for p in self.processes() if p.pid != self.process.pid]
        return [
            *(f"process {process.name()}" for process in processes),
            *(f"segment {path}" for path in self._segments if path.exists()),
        ]


@contextlib.contextmanager
def watched(
    model: str,
    *flags: str,
    directory: Path,
    port: int | None = None,
    engine_flags: Sequence[str] = ENGINE_FLAGS,
    prefix: Sequence[str] = (),
    **variables: str,
) -> Iterator[Watched]:
    """Start a server, with `prefix` before its command, and kill all its processes at the end."""
    with start(
        model,
        *engine_flags,
        *flags,
        log=directory / f"{time.monotonic_ns()}.log",
        env=user_environment() | OFFLINE | variables,
        port=port,
        prefix=prefix,
    ) as started:
        server = Watched(started)
        try:
            yield server
        finally:
            for left in server.processes():
                with contextlib.suppress(psutil.Error):
                    left.kill()


@dataclass(frozen=True)
class Ending:
    """How a server ended after a fault."""

    exit_code: int | None
    errors: frozenset[str]
    leftovers: tuple[str, ...]
    stream_failed: bool | None = None  # None without a stream
    kept_serving: bool | None = None  # after SIGTERM while loading; None in other tests

    @property
    def behaviour(self) -> tuple:
        """What must equal a plain server's. The errors in a log can depend on timing."""
        return self.stream_failed, self.exit_code, self.leftovers, self.kept_serving


def errors_in(log: str) -> frozenset[str]:
    """Errors in a log, with numbers (sizes, ids, times) replaced by #."""
    found = re.findall(r"\b((?:\w+\.)*\w*(?:Error|Exception): [^\n]*)", log)
    return frozenset(re.sub(r"[0-9][0-9.]*", "#", error.strip()) for error in found)


class LongStream:
    """A streamed answer that fills the context. It also fails if no more tokens come."""

    def __init__(self, server: Watched) -> None:
        self._server, self.failed = server, False
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        assert self._started.wait(LIMIT_S), server.log[-3000:]

    def _read(self) -> None:
        try:
            for chunk in self._server.client(STREAM_TIMEOUT_S).completions.create(
                model=self._server.model,
                prompt=PROMPT,
                max_tokens=STREAM_TOKENS,
                temperature=0,
                stream=True,
                extra_body={"ignore_eos": True},
            ):
                if chunk.choices[0].finish_reason == "abort":
                    self.failed = True
                self._started.set()
        except Exception:  # the client has many exceptions for a lost connection
            self.failed = True
            self._started.set()

    def wait(self) -> bool:
        """Wait for its end, which must come; returns whether it failed."""
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive(), "a client still waits for tokens"
        return self.failed


def killed(server: Watched, title: str) -> Ending:
    """Kill one of the server's processes during a stream."""
    server.look_at_segments()
    victim = server.titled(title)
    stream = LongStream(server)
    victim.kill()
    failed = stream.wait()
    return ending(server, stream_failed=failed)


def terminated(server: Watched) -> Ending:
    """Terminate the server during a stream."""
    server.look_at_segments()
    stream = LongStream(server)
    os.kill(server.process.pid, signal.SIGTERM)
    failed = stream.wait()
    return ending(server, stream_failed=failed)


def terminated_while_loading(server: Watched) -> Ending:
    """Terminate the server while it loads, and again if it serves nevertheless.

    Stock vLLM 0.32 ignores a SIGTERM that comes before its event loop runs.
    """
    deadline = time.monotonic() + LIMIT_S
    while "Starting to load model" not in server.log:
        assert server.process.poll() is None, server.log[-3000:]
        assert time.monotonic() < deadline, server.log[-3000:]
        time.sleep(0.02)
    server.look_at_segments()
    os.kill(server.process.pid, signal.SIGTERM)
    try:
        server.wait_until_ready()
    except RuntimeError:  # the server ended
        return ending(server, kept_serving=False)
    os.kill(server.process.pid, signal.SIGTERM)
    return ending(server, kept_serving=True)


def ending(server: Watched, **seen: bool) -> Ending:
    """Wait for the server to end, and record what it leaves behind."""
    exit_code = server.process.wait(LIMIT_S)
    left = tuple(server.leftovers())
    return Ending(exit_code=exit_code, errors=errors_in(server.log), leftovers=left, **seen)


def side_by_side(happen: Callable[[tuple[str, ...]], Ending]) -> tuple[Ending, Ending]:
    """Run `happen` with a plain and a speculating server at the same time."""
    with ThreadPoolExecutor(2) as executor:
        plain, ours = executor.map(happen, ((), SPECULATION))
    return plain, ours
