"""The Ray examples as a user runs them: batches with vLLM and Ray Data LLM, Ray Serve LLM."""

import json
import re
import sys
import time

import pytest

from layerskip_vllm.demo.models import PYTHON_10M
from layerskip_vllm.measure.server import process_group
from tests.parallel.hosts import METRICS_PORT, one_host, skip_reason

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason())),
]

EXIT_LAYER = "4"
PROMPTS = ["def add(a, b):\n", "import os\n", "class Stack:\n"]
START_LIMIT_S = 240
SMALL = ["--enforce-eager"]
SMALL_CACHE = {"VLLM_CPU_KVCACHE_SPACE": "1"}

COMPLETE = """
import openai
client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none", max_retries=0)
done = client.completions.create(model="layerskip", prompt="import os", max_tokens=8, timeout=60)
print(done.usage.completion_tokens)
"""

READ_METRICS = f"""
import urllib.request
with urllib.request.urlopen("http://127.0.0.1:{METRICS_PORT}/metrics", timeout=30) as answer:
    print(answer.read().decode())
"""


@pytest.fixture(scope="module")
def host():
    # Ray Serve LLM needs one CPU per replica and one for the engine.
    with one_host(num_cpus=8, **SMALL_CACHE) as host:
        yield host


@pytest.mark.parametrize("example", ["batch.py", "data_llm.py"])
def test_each_line_of_a_file_is_completed(host, example, tmp_path):
    lines = tmp_path / "prompts.jsonl"
    lines.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    completions = tmp_path / "completions.jsonl"
    command = [sys.executable, f"examples/ray/{example}", str(PYTHON_10M), EXIT_LAYER]
    done = host.run(
        [*command, str(lines), str(completions), "--max-tokens", "8", *SMALL], **SMALL_CACHE
    )
    assert done.returncode == 0, done.stderr[-6000:]
    completed = [json.loads(line) for line in completions.read_text().splitlines()]
    assert sorted(line["prompt"] for line in completed) == sorted(PROMPTS)
    assert all(line["completion"] for line in completed)


def test_ray_serve_answers_as_the_openai_server_does(host, tmp_path):
    log = tmp_path / "serve.log"
    command = [sys.executable, "examples/ray/serve_llm.py", str(PYTHON_10M), EXIT_LAYER, *SMALL]
    with (
        log.open("w") as file,
        process_group(host.inside(command), file, host.variables()) as process,
    ):
        deadline = time.monotonic() + START_LIMIT_S
        while (done := host.run([sys.executable, "-c", COMPLETE])).returncode != 0:
            assert process.poll() is None, log.read_text()[-6000:]
            assert time.monotonic() < deadline, done.stderr + log.read_text()[-6000:]
            time.sleep(1)
        assert done.stdout == "8\n"
        # Ray collects metrics every few seconds.
        while not (metrics := layerskip_metrics(host)):
            assert time.monotonic() < deadline, log.read_text()[-6000:]
            time.sleep(1)
    assert {"num_fresh_tokens", "num_resumed_tokens"} <= {
        name.split("_total")[0] for name in metrics
    }
    assert "draft_time_seconds_count" in metrics


def layerskip_metrics(host) -> set[str]:
    """Names of our metrics that Ray exports, without the prefix."""
    exported = host.run([sys.executable, "-c", READ_METRICS]).stdout
    return set(re.findall(r"^ray_vllm_layerskip_(\w+)", exported, flags=re.MULTILINE))
