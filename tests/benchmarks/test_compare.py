"""The benchmark end to end: real engines in separate processes, on a tiny model.

In float32 all systems must generate the same text; only then are their speeds comparable.
"""

import json
import os
import subprocess
import sys

import pytest

SYSTEMS = ("self", "self-default", "draft_model", "ngram", "transformers-early-exit")


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "benchmarks.compare", "--smoke", "--output", str(folder)]
    completed = subprocess.run(
        [*command, "--num-threads", "1", "--system", *SYSTEMS, "transformers"],
        env=os.environ | {"LAYERSKIP_CACHE": str(tmp_path_factory.mktemp("cache"))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return folder


@pytest.fixture(scope="module")
def result(folder):
    (result,) = json.loads((folder / "results.json").read_text())
    return result


@pytest.fixture(scope="module")
def systems(result):
    return {system["name"]: system for system in result["systems"]}


def test_every_systems_output_equals_plain(systems):
    assert list(systems) == ["plain", *SYSTEMS[:-1], "transformers", SYSTEMS[-1]]
    for system in systems.values():
        for batch in system["batches"]:
            assert batch["num_texts"] == 4  # of the only round
            assert batch["num_texts_equal"] == batch["num_texts"], system["name"]


def test_systems_decode_the_batch_sizes_they_support(systems):
    sizes = {
        name: [batch["batch_size"] for batch in system["batches"]]
        for name, system in systems.items()
    }
    assert sizes["self"] == sizes["ngram"] == [1, 2]
    assert sizes["transformers"] == sizes["transformers-early-exit"] == [1]


def test_acceptance_is_as_calibrated(result, systems):
    assert abs(result["calibration"]["agreement"]["mean"] - 0.8) <= 0.01
    for name in ("self", "draft_model", "transformers-early-exit"):
        assert 0.6 < systems[name]["batches"][0]["acceptance_per_token"] < 0.95, name


def test_equal_drafts_take_equally_many_steps(systems):
    """A checkpoint of the first E layers drafts what exit E drafts, so both accept the same tokens.

    The counts of drafts differ: `self:E` drafts no token beyond `max_tokens`.
    """
    tokens_per_step = [
        [batch["tokens_per_step"] for batch in systems[name]["batches"]]
        for name in ("self", "draft_model")
    ]
    assert tokens_per_step[0] == tokens_per_step[1]
    assert min(tokens_per_step[0]) > 1


def test_plain_decodes_one_token_a_step(systems):
    for name in ("plain", "transformers"):
        assert [batch["tokens_per_step"] for batch in systems[name]["batches"]].count(1) >= 1
        assert systems[name]["batches"][0]["acceptance_rate"] is None


def test_only_a_draft_model_shrinks_the_kv_cache(systems):
    tokens = {name: system["starts"][0]["kv_cache_tokens"] for name, system in systems.items()}
    assert tokens["self"] == tokens["self-default"] == tokens["plain"]
    assert tokens["draft_model"] < tokens["plain"]
    assert tokens["transformers"] is None


def test_the_ideal_uses_measured_row_counts(result):
    assert {"1", "2", "5", "10", "128"} <= set(result["forward_times"])
    for ideal in result["ideals"]:
        assert ideal["speedup"] == pytest.approx(
            ideal["tokens_per_cycle"]
            * ideal["cycle"]["plain_s"]
            / sum(value for key, value in ideal["cycle"].items() if key != "plain_s")
        )


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("plain", {"verify: all layers", "LM head", "sampling", "scheduling"}),
        (
            "self",
            {
                "draft: layers",
                "draft: LM head",
                "verify: remaining layers",
                "LM head",
                "sampling",
                "scheduling",
            },
        ),
        ("draft_model", {"draft: layers", "draft: LM head", "verify: all layers", "LM head"}),
    ],
)
def test_parts_of_a_step_add_up(systems, name, parts):
    for breakdown in systems[name]["step_breakdowns"]:
        assert sum(breakdown["parts_ms"].values()) == pytest.approx(breakdown["step_ms"])
        assert all(breakdown["parts_ms"][part] > 0 for part in parts)
        assert breakdown["parts_ms"]["rest"] > 0


def test_report_and_picture_are_written_beside_the_results(folder):
    assert "## small" in (folder / "report.md").read_text()
    assert (folder / "small.png").read_bytes().startswith(b"\x89PNG")
