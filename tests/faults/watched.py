"""A server whose processes and shared memory are watched, while it is treated badly."""

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
"""For anything that should happen by itself."""

STREAM_TOKENS = 1900
CONTEXT = ("--max-model-len", "2048")
"""For a stream that goes on while a fault happens."""

STREAM_TIMEOUT_S = 20
"""After that a client of a stream hangs up."""

PROMPT = "Hello there"


class Watched:
    """A server under a fault. Its processes are those of the session that it started in."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.model, self.process, self.port = server.model, server.process, server.port
        self.wait_until_ready = server.wait_until_ready
        self._segments: set[Path] = set()

    @property
    def log(self) -> str:
        return self._server.read_log()

    def client(self, timeout_s: float = LIMIT_S) -> openai.OpenAI:
        """One that gives up after so long without a word."""
        return self._server.open_client(timeout_s)

    def complete(self) -> str:
        """A short greedy answer."""
        answer = self.client().completions.create(
            model=self.model, prompt=PROMPT, max_tokens=20, temperature=0
        )
        return answer.choices[0].text

    def processes(self) -> list[psutil.Process]:
        """All that run now; what has ended and was not waited for does not run."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                of_session = os.getsid(process.pid) == self.process.pid
                if of_session and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def titled(self, title: str) -> psutil.Process:
        """The one process that calls itself so: `EngineCore`, `Worker`."""
        titles = {process: " ".join(process.cmdline()) for process in self.processes()}
        (found,) = [p for p, text in titles.items() if f"::{title}" in text]
        return found

    def look_at_segments(self) -> None:
        """Remember which shared memory the processes have mapped; afterwards nobody can tell."""
        for process in self.processes():
            with contextlib.suppress(OSError):  # psutil's memory_maps() takes seconds
                maps = Path(f"/proc/{process.pid}/maps").read_text()
                self._segments |= {Path(path) for path in re.findall(r"/dev/shm/\S+", maps)}

    def leftovers(self) -> list[str]:
        """Processes and segments that are still there a while after the server has ended."""
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
    """Start a server, perhaps by another command; at the end nothing of it is left."""
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
    """How a server took a fault."""

    exit_code: int | None
    errors: frozenset[str]
    leftovers: tuple[str, ...]
    stream_failed: bool | None = None  # None where nobody streamed
    kept_serving: bool | None = None  # None where it was not told to end while it loads

    @property
    def behaviour(self) -> tuple:
        """What must not depend on who drafts. Which errors a log names can be a matter of time."""
        return self.stream_failed, self.exit_code, self.leftovers, self.kept_serving


def errors_in(log: str) -> frozenset[str]:
    """What errors a log names, without the numbers in them, which are sizes, ids and times."""
    found = re.findall(r"\b((?:\w+\.)*\w*(?:Error|Exception): [^\n]*)", log)
    return frozenset(re.sub(r"[0-9][0-9.]*", "#", error.strip()) for error in found)


class LongStream:
    """A streamed answer that goes on for as long as the context lasts.

    It has failed as well where nothing comes any more.
    """

    def __init__(self, server: Watched) -> None:
        self._server, self.failed = server, False
        self._flows = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        assert self._flows.wait(LIMIT_S), server.log[-3000:]

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
                self._flows.set()
        except Exception:  # the client has a name for each way in which a connection can end
            self.failed = True
            self._flows.set()

    def wait(self) -> bool:
        """Whether it ended badly; it must end."""
        self._thread.join(LIMIT_S)
        assert not self._thread.is_alive(), "a client still waits for tokens"
        return self.failed


def killed(server: Watched, title: str) -> Ending:
    """A process of a server dies in mid-stream, without a word."""
    server.look_at_segments()
    victim = server.titled(title)
    stream = LongStream(server)
    victim.kill()
    failed = stream.wait()
    return ending(server, stream_failed=failed)


def terminated(server: Watched) -> Ending:
    """The server is told to end in mid-stream."""
    server.look_at_segments()
    stream = LongStream(server)
    os.kill(server.process.pid, signal.SIGTERM)
    failed = stream.wait()
    return ending(server, stream_failed=failed)


def terminated_while_loading(server: Watched) -> Ending:
    """Stock vLLM 0.32 forgets a SIGTERM before its event loop runs, and serves: tell it again."""
    deadline = time.monotonic() + LIMIT_S
    while "Starting to load model" not in server.log:
        assert server.process.poll() is None, server.log[-3000:]
        assert time.monotonic() < deadline, server.log[-3000:]
        time.sleep(0.02)
    server.look_at_segments()
    os.kill(server.process.pid, signal.SIGTERM)
    try:
        server.wait_until_ready()
    except RuntimeError:  # it ended
        return ending(server, kept_serving=False)
    os.kill(server.process.pid, signal.SIGTERM)
    return ending(server, kept_serving=True)


def ending(server: Watched, **seen: bool) -> Ending:
    """Wait for the server's own end, and see what stays behind."""
    exit_code = server.process.wait(LIMIT_S)
    left = tuple(server.leftovers())
    return Ending(exit_code=exit_code, errors=errors_in(server.log), leftovers=left, **seen)


def side_by_side(happen: Callable[[tuple[str, ...]], Ending]) -> tuple[Ending, Ending]:
    """What happens to a plain server, and to one that speculates, at the same time."""
    with ThreadPoolExecutor(2) as executor:
        plain, ours = executor.map(happen, ((), SPECULATION))
    return plain, ours
