"""Tensor parallel across two hosts, with a Ray head, a worker node, a real server and client."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from layerskip_vllm.measure.server import process_group
from tests.parallel.hosts import skip_reason, two_hosts
from tests.parallel.jobs import MAX_TOKENS
from tests.server.servers import ENGINE_FLAGS

ROOT = Path(__file__).parents[2]
PORT = 8000
START_LIMIT_S, FAILURE_LIMIT_S = 300, 180

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason())),
]


@pytest.fixture(scope="module")
def hosts():
    with two_hosts() as hosts:
        yield hosts


@contextlib.contextmanager
def serve(host, model, log):
    """Start the example's server on a host and wait until it is ready; yields its process."""
    command = host.inside(["examples/ray/serve.sh", model, "3", "2", *ENGINE_FLAGS])
    with log.open("w") as file, process_group(command, file, host.variables()) as process:
        deadline = time.monotonic() + START_LIMIT_S
        while status(host) != 200:
            assert process.poll() is None, log.read_text()[-6000:]
            assert time.monotonic() < deadline, log.read_text()[-6000:]
            time.sleep(1)
        yield process


def status(host) -> int | None:
    """Status of the server's health check; None without an answer."""
    url = f"http://127.0.0.1:{PORT}/health"
    ask = f"import urllib.request as r; print(r.urlopen({url!r}, timeout=5).status)"
    done = host.run([sys.executable, "-c", ask])
    return int(done.stdout) if done.returncode == 0 else None


def ask(host, prompts, max_tokens=MAX_TOKENS) -> list[list[int]]:
    done = host.run(
        [sys.executable, "-m", "tests.parallel.ask", str(PORT), str(max_tokens)],
        stdin=json.dumps(prompts),
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def workers_on(host) -> int:
    """Number of vLLM's worker actors on the host."""
    return sum("RayWorkerProc" in title for title in host.titles())


def free_cpus(host) -> float:
    """CPUs of the cluster outside all placement groups."""
    script = "import ray; ray.init(log_to_driver=False); print(ray.available_resources()['CPU'])"
    done = host.run([sys.executable, "-c", script])
    return float(done.stdout.split()[-1]) if done.returncode == 0 else 0


def until(condition, limit_s: float) -> bool:
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(1)
    return True


def test_a_server_across_two_hosts_gives_the_output_of_one_process(
    hosts, model, token_prompts, plain_token_ids, tmp_path
):
    head, worker = hosts
    with serve(head, model, tmp_path / "server.log"):
        assert (workers_on(head), workers_on(worker)) == (1, 1)
        assert ask(head, token_prompts) == plain_token_ids
    assert until(lambda: free_cpus(head) == 2, FAILURE_LIMIT_S)


@pytest.mark.timeout(2 * START_LIMIT_S + 5 * FAILURE_LIMIT_S)
def test_a_dead_worker_node_ends_the_server_and_a_repaired_cluster_serves_again(
    model, token_prompts, plain_token_ids, tmp_path
):
    with two_hosts() as (head, worker):
        log = tmp_path / "first.log"
        with serve(head, model, log) as server:
            client = subprocess.Popen(
                head.inside([sys.executable, "-m", "tests.parallel.ask", str(PORT), "400"]),
                env=head.variables(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            client.stdin.write(json.dumps(token_prompts[:1]))
            client.stdin.close()
            assert "tokens" in client.stderr.readline()  # generation has started
            worker.end_processes()
            assert client.wait(FAILURE_LIMIT_S) != 0, client.stdout.read()
            assert until(lambda: status(head) != 200, FAILURE_LIMIT_S)
            assert server.wait(FAILURE_LIMIT_S) != 0, log.read_text()[-6000:]
        assert until(lambda: free_cpus(head) == 1, FAILURE_LIMIT_S)  # of the remaining node

        worker.start_ray(head=head.address, num_cpus=1)
        with serve(head, model, tmp_path / "second.log"):
            assert ask(head, token_prompts) == plain_token_ids
