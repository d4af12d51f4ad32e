"""The real `vllm` command and the real server, as processes of their own."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import openai
from prometheus_client.parser import text_string_to_metric_families

HOST = "127.0.0.1"
VLLM = str(Path(sys.executable).with_name("vllm"))
START_LIMIT_S = 180
STOP_LIMIT_S = 30
POLL_INTERVAL_S = 0.2
LOG_TAIL_CHARS = 6000

ENGINE_FLAGS = (
    *("--dtype", "float32"),
    "--enforce-eager",
    *("--max-model-len", "512"),
    *("--kv-cache-memory-bytes", str(64 << 20)),
    *("--block-size", "32"),
    *("--max-num-seqs", "16"),
    *("--seed", "0"),
)
"""An eager float32 engine with a small KV cache, as in the engine tests."""


def user_environment() -> dict[str, str]:
    """The environment without what tests/conftest.py sets for engines inside the test process."""
    ours = ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL")
    return {name: value for name, value in os.environ.items() if name not in ours}


def run_vllm(*args: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Run the `vllm` command to its end; `stdout` holds the screen: both streams, as printed."""
    with _process_group([VLLM, *args], stdout=subprocess.PIPE, text=True) as process:
        screen, _ = process.communicate(timeout=timeout_s)
    return subprocess.CompletedProcess(args, process.returncode, stdout=screen)


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    model: str
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def base_url(self) -> str:
        """Where the OpenAI API is."""
        return f"{self.url}/v1"

    @cached_property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.base_url, api_key="none", max_retries=0, timeout=60)

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
def serve(model: str, *args: str) -> Generator[Server]:
    """Start `vllm serve`, wait until it answers, and leave none of its processes behind."""
    with tempfile.TemporaryDirectory(prefix="layerskip-server-") as directory:
        server = Server(model, _free_port(), Path(directory) / "server.log")
        where = ("--host", HOST, "--port", str(server.port))
        command = [VLLM, "serve", model, *where, *ENGINE_FLAGS, *args]
        with server.log.open("w") as log, _process_group(command, stdout=log) as process:
            _wait_until_ready(server, process)
            yield server


@contextmanager
def _process_group(command: list[str], **settings) -> Generator[subprocess.Popen]:
    """Start a command in a group of its own, and end the whole group: engine, workers and all."""
    process = subprocess.Popen(
        command,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env=user_environment(),
        start_new_session=True,
        **settings,
    )
    try:
        yield process
    finally:
        _signal_group(process, signal.SIGTERM)
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            pass
        finally:
            _signal_group(process, signal.SIGKILL)
            process.wait()


def _signal_group(process: subprocess.Popen, number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


def _wait_until_ready(server: Server, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{_tail(server.log)}")
        try:
            with urllib.request.urlopen(f"{server.url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(POLL_INTERVAL_S)
    raise TimeoutError(f"no answer within {START_LIMIT_S} s:\n{_tail(server.log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-LOG_TAIL_CHARS:]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]
