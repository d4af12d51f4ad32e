"""Drive a `vllm serve` process: start it, wait until it answers, ask it, stop it, read its log."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import openai
from prometheus_client.parser import text_string_to_metric_families

HOST = "127.0.0.1"
VLLM = str(Path(sys.executable).with_name("vllm"))
START_LIMIT_S = 300
STOP_LIMIT_S = 30
POLL_INTERVAL_S = 0.2
LOG_TAIL_CHARS = 6000


@dataclass(frozen=True)
class Server:
    """A started server; `log` holds what it prints."""

    model: str
    port: int
    log: Path
    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        """Process id of the API server."""
        return self.process.pid

    @property
    def url(self) -> str:
        """Address of `/health` and `/metrics`."""
        return f"http://{HOST}:{self.port}"

    @property
    def base_url(self) -> str:
        """Address of the OpenAI API."""
        return f"{self.url}/v1"

    @cached_property
    def client(self) -> openai.OpenAI:
        """A client with a long timeout."""
        return self.open_client(timeout_s=600)

    def open_client(self, timeout_s: float) -> openai.OpenAI:
        """Return a client that does not retry; `timeout_s` bounds each silence."""
        return openai.OpenAI(
            base_url=self.base_url, api_key="none", max_retries=0, timeout=timeout_s
        )

    def wait_until_ready(self) -> None:
        """Return once it answers; raises as the function `wait_until_ready` does."""
        wait_until_ready(self.port, self.process, self.log)

    def read_log(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")

    def metrics(self) -> dict[tuple[str, ...], float]:
        """Counters at `/metrics`: (name,) -> value; a counter per position has that as well."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as response:
            families = list(text_string_to_metric_families(response.read().decode()))
        values: dict[tuple[str, ...], float] = {}
        for sample in (sample for family in families for sample in family.samples):
            position = [sample.labels[label] for label in ("position",) if label in sample.labels]
            key = (sample.name, *position)
            values[key] = values.get(key, 0) + sample.value
        return values


@contextmanager
def start(
    model: str,
    *args: str,
    log: Path,
    env: dict[str, str],
    port: int | None = None,
    prefix: Sequence[str] = (),
) -> Generator[Server]:
    """Run `vllm serve model args...` without waiting for it; stop all its processes at the end.

    Args:
        model: Path or name of the checkpoint.
        *args: Further command-line arguments; host and port are set here.
        log: File for what the server prints.
        env: Its environment.
        port: Default: a free one.
        prefix: Command that runs the server's.
    """
    port = port or free_port()
    command = [*prefix, VLLM, "serve", model, "--host", HOST, "--port", str(port), *args]
    with log.open("w") as file, process_group(command, stdout=file, env=env) as process:
        yield Server(model, port, log, process)


@contextmanager
def serve(model: str, *args: str, log: Path, env: dict[str, str]) -> Generator[Server]:
    """Start a server as `start` does and wait until it answers.

    Raises:
        RuntimeError: The server ended before it answered; the log's end is in the message.
        TimeoutError: It did not answer within START_LIMIT_S.
    """
    with start(model, *args, log=log, env=env) as server:
        server.wait_until_ready()
        yield server


@contextmanager
def process_group(
    command: list[str],
    stdout: IO[str] | int,
    env: dict[str, str],
) -> Generator[subprocess.Popen[str]]:
    """Start a command in a group of its own, and end the whole group: engine, workers and all."""
    process = subprocess.Popen(
        command,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=env,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _signal_group(process, signal.SIGTERM)
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_LIMIT_S)
        finally:
            _signal_group(process, signal.SIGKILL)
            process.wait()


def _signal_group(process: subprocess.Popen, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def wait_until_ready(port: int, process: subprocess.Popen[str], log: Path) -> None:
    """Return once a server answers at `port`.

    Raises:
        RuntimeError: The process ended before; the end of its log is in the message.
        TimeoutError: It did not answer within START_LIMIT_S.
    """
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{_tail(log)}")
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(POLL_INTERVAL_S)
    raise TimeoutError(f"no answer within {START_LIMIT_S} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-LOG_TAIL_CHARS:]


def free_port() -> int:
    """Return a port that nothing listens on right now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
