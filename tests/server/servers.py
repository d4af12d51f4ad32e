"""The real `vllm` command and the real server, on small models."""

import os
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from layerskip_vllm.measure import server
from layerskip_vllm.measure.server import VLLM, Server, process_group

MAX_MODEL_LEN = 512

ENGINE_FLAGS = (
    *("--dtype", "float32"),
    "--enforce-eager",
    *("--max-model-len", str(MAX_MODEL_LEN)),
    *("--kv-cache-memory-bytes", str(64 << 20)),
    *("--block-size", "32"),
    *("--max-num-seqs", "16"),
    *("--seed", "0"),
)
"""An eager float32 engine with a small KV cache, as in the engine tests."""

OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
"""Variables of a server that must not access the network."""


def user_environment() -> dict[str, str]:
    """The environment without the variables that tests/conftest.py sets for in-process engines."""
    ours = {
        "OMP_NUM_THREADS",
        "VLLM_CPU_OMP_THREADS_BIND",
        "VLLM_ENABLE_V1_MULTIPROCESSING",
        "VLLM_LOGGING_LEVEL",
    }
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    # As at a terminal: Python's output to its two streams keeps its order.
    return environment | {"PYTHONUNBUFFERED": "1"}


@contextmanager
def serve(model: str, *args: str, **variables: str) -> Generator[Server]:
    """Start `vllm serve`, wait until it answers, and end all its processes afterwards."""
    with tempfile.TemporaryDirectory(prefix="layerskip-server-") as directory:
        log = Path(directory) / "server.log"
        env = user_environment() | variables
        with server.serve(model, *ENGINE_FLAGS, *args, log=log, env=env) as running:
            yield running


def run_vllm(*args: str, timeout_s: float) -> tuple[int, str]:
    """Run the `vllm` command and wait for it, or kill it after `timeout_s`.

    Returns:
        (exit code, both output streams in the order printed).
    """
    with process_group([VLLM, *args], stdout=subprocess.PIPE, env=user_environment()) as process:
        screen, _ = process.communicate(timeout=timeout_s)
    return process.returncode, screen
