"""The demo and every example, run as by a user."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import openai
import psutil
import pytest

from layerskip_vllm.measure.server import free_port, process_group, wait_until_ready
from tests.commands import LAYERSKIP_VLLM
from tests.server.servers import user_environment

ROOT = Path(__file__).parents[2]
DEMO = [LAYERSKIP_VLLM, "demo", "--num-prompts", "1", "--max-tokens", "24", "--rounds", "1"]


def run(command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env=user_environment() | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_offline_inference_prints_completions_and_acceptance(random_llama):
    model = random_llama(num_layers=6, late_scale=0.3)
    done = run([sys.executable, "examples/offline_inference.py", model, "4"])
    assert done.returncode == 0, done.stdout
    assert "'def fibonacci(n):' -> " in done.stdout
    assert re.search(r"^acceptance rate \d+\.\d%, mean length \d\.\d\d$", done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_the_client_streams_from_the_served_example(random_llama, tmp_path):
    port, log = free_port(), tmp_path / "server.log"
    env = user_environment() | {"PORT": str(port), "PYTHON": sys.executable}
    model = random_llama(num_layers=6, late_scale=0.3)
    command = ["examples/serve.sh", str(model), "4", "--enforce-eager"]
    command += ["--kv-cache-memory-bytes", str(64 << 20)]
    with log.open("w") as file, process_group(command, stdout=file, env=env) as process:
        wait_until_ready(port, process, log)
        done = run([sys.executable, "examples/client.py", "abc"], PORT=str(port))
        assert done.returncode == 0, done.stdout
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        expected = client.completions.create(
            model="layerskip", prompt="abc", max_tokens=64, temperature=0
        )
    assert done.stdout == f"abc{expected.choices[0].text}\n"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        pytest.param([], "layerskip-python-10m", id="the shipped checkpoint"),
        pytest.param(
            ["--model", "smollm2"], "HumanEval/0", id="a real LLM", marks=pytest.mark.slow
        ),
    ],
)
def test_the_demo_compares_the_two_servers(flags, expected, tmp_path):
    picture = tmp_path / "demo.svg"
    done = run([*DEMO, *flags, "--save", str(picture)], COLUMNS="120")
    assert done.returncode == 0, done.stdout
    assert "Every text equals plain decoding's." in done.stdout
    assert expected in done.stdout
    assert "1 of 1 rounds measured: " in done.stdout
    assert picture.read_text().startswith("<svg")


@pytest.fixture
def _as_in_the_foreground():
    """Restore Ctrl-C, which tests in a shell's background ignore and pass on to their children."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("_as_in_the_foreground")
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_stops_its_servers_when_it_is_interrupted(number):
    with subprocess.Popen(
        DEMO, cwd=ROOT, env=user_environment(), stdout=subprocess.PIPE, text=True
    ) as demo:
        for line in demo.stdout:
            if line.startswith("Servers ready"):
                break
        started = psutil.Process(demo.pid).children(recursive=True)
        assert len(started) > 3  # two API servers, two engines
        os.kill(demo.pid, number)
        assert "the servers are stopped" in demo.communicate(timeout=60)[0]
        assert demo.returncode == 130
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive
