"""The shipped checkpoint, which is trained for early exit and drafts well."""

import json

import pytest

from layerskip_vllm.demo.models import MODELS, PYTHON_10M
from layerskip_vllm.measure.engine import scheduler
from layerskip_vllm.scheduling.policy import Choice
from tests.engine.engines import (
    close,
    counts,
    generate,
    generate_plainly,
    greedy,
    make_self_llm,
)

EXIT_LAYER, NUM_SPECULATIVE_TOKENS = 4, 4


@pytest.fixture(scope="module")
def prompts():
    lines = (PYTHON_10M / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def test_acceptance_rate_is_at_least_50_percent(prompts):
    """At E = 4, K = 4, greedy, on held-out prompts: the minimum for shipping."""
    expected = generate_plainly(str(PYTHON_10M), prompts, greedy(128))
    llm = make_self_llm(str(PYTHON_10M), EXIT_LAYER, NUM_SPECULATIVE_TOKENS)
    before = counts(llm)
    assert generate(llm, prompts, greedy(128)) == expected
    counted = counts(llm).since(before)
    close(llm)
    assert counted.num_drafts > 500
    assert counted.num_accepted / counted.num_drafted >= 0.5


@pytest.mark.slow
def test_compiled_segments_equal_one_graph_in_bfloat16(prompts):
    """Without drafts every forward has plain's shape, so every bit must be equal."""
    compiled = {"dtype": "bfloat16", "enforce_eager": False}
    expected = generate_plainly(str(PYTHON_10M), prompts, greedy(128), **compiled)
    llm = make_self_llm(
        str(PYTHON_10M), EXIT_LAYER, NUM_SPECULATIVE_TOKENS, {"adaptive": True}, **compiled
    )
    scheduler(llm).policy.choose = lambda _: Choice(0, 0)
    assert generate(llm, prompts, greedy(128)) == expected
    close(llm)


def test_the_shipped_checkpoint_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in PYTHON_10M.iterdir()}
    assert sum(files.values()) <= 25_000_000
    assert {"README.md", "SOURCES.md", "curves.png", "prompts.jsonl", "tokenizer.json"} <= {*files}
    assert json.loads((PYTHON_10M / "config.json").read_text())["dtype"] == "bfloat16"
    assert MODELS["python-10m"].exit_layer == EXIT_LAYER
