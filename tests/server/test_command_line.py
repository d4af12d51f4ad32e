"""The `vllm` command: errors for a user's mistakes, the help, and a benchmark."""

import json

import pytest

from tests.server.servers import ENGINE_FLAGS, run_vllm


@pytest.fixture(scope="module")
def six_layers(random_llama):
    return random_llama(num_layers=6, late_scale=0.3)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        pytest.param(
            ["--speculative-model", "self:x"],
            ["'self:x'", "expected self:E", "whole number of at least 1"],
            id="no-number",
        ),
        pytest.param(
            ["--speculative-model", "self:6"],
            ["exit_layer=6 must be in [1, 5] for a 6-layer target"],
            id="beyond-the-last-layer",
        ),
        pytest.param(
            ["--speculative-model", "self:3", "--speculative-config", '{"model": "self:3"}'],
            ["--speculative-model", "self:3", "contradicts --speculative-config"],
            id="set-twice",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--speculative-model", "self:3", "--spec-model", "self:4"],
            ["self:4", "contradicts", "self:3"],
            id="two-values",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ["--early-exit", "7"],
            ["early_exit=7 must be in [1, 6] for a 6-layer model"],
            id="exit-beyond-the-last-layer",
        ),
        pytest.param(
            ["--early-exit", "3", "--speculative-model", "self:4"],
            ["early_exit=3 cannot be combined with self:4"],
            id="exit-and-speculation",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_bad_command_line_ends_with_the_error(six_layers, args, expected):
    code, screen = run_vllm("serve", six_layers, *ENGINE_FLAGS, *args, timeout_s=240)
    last_line = screen.strip().splitlines()[-1]
    assert code != 0
    assert [part for part in expected if part not in last_line] == [], last_line


def test_help_explains_the_flag():
    code, screen = run_vllm("serve", "--help=speculative-model", timeout_s=240)
    assert code == 0
    assert "--speculative-model self:E" in screen
    assert "drafts with the first E decoder layers of the model" in " ".join(screen.split())


@pytest.mark.slow
def test_bench_throughput_runs(six_layers, tmp_path):
    results = tmp_path / "results.json"
    code, screen = run_vllm(
        *("bench", "throughput", "--model", six_layers, *ENGINE_FLAGS),
        *("--speculative-model", "self:4", "--num-speculative-tokens", "3"),
        *("--dataset-name", "random", "--num-prompts", "4"),
        *("--random-input-len", "16", "--random-output-len", "8"),
        *("--output-json", str(results)),
        timeout_s=480,
    )
    assert code == 0, screen[-6000:]
    assert "LayerSkip: layers [0, 4) of 6 draft K=3 tokens" in screen
    assert json.loads(results.read_text())["num_requests"] == 4
