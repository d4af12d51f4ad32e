"""Jobs for tests/parallel/decode.py, and the check of their results."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine.engines import as_prompts, generate_plainly, greedy
from tests.options import FIXED

MAX_TOKENS = 40

DECODE = [sys.executable, str(Path(__file__).with_name("decode.py"))]

RAY = {"tensor_parallel_size": 2, "distributed_executor_backend": "ray"}


def job(model: str, prompts: list[list[int]], *, inside_a_task: bool = False, **arguments) -> str:
    """Greedy decoding with `self:3`, as JSON."""
    settings = {
        "model": model,
        "spec_model": "self:3",
        "spec_tokens": 4,
        "additional_config": {"layerskip": FIXED},
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 256,
        "kv_cache_memory_bytes": 64 << 20,
        "block_size": 32,
    }
    return json.dumps(
        {
            "arguments": settings | arguments,
            "prompts": prompts,
            "max_tokens": MAX_TOKENS,
            "inside_a_task": inside_a_task,
        }
    )


def plain_outputs(model: str, prompts: list[list[int]]) -> list[list[int]]:
    """Outputs of one process without speculation."""
    return generate_plainly(model, as_prompts(prompts), greedy(MAX_TOKENS, ignore_eos=True))


def assert_decoded(done: subprocess.CompletedProcess[str], token_ids: list[list[int]]) -> None:
    """The job succeeded with these token ids, and drafts were accepted."""
    if done.returncode != 0:
        pytest.fail(done.stderr[-8000:])
    # Ray and vLLM print to the same stream.
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    result = json.loads(line.removeprefix("RESULT "))
    assert result["token_ids"] == token_ids
    assert result["num_accepted"] > 0
