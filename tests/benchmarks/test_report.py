"""The report, the picture and the JSON file."""

import dataclasses
import json

import pytest

from benchmarks.environment import Environment
from benchmarks.forward_time import ForwardTime, ForwardTimes
from benchmarks.ideal import IdealCycle
from benchmarks.memory import Memory
from benchmarks.plots import draw
from benchmarks.report import markdown
from benchmarks.result import (
    BatchFigures,
    IdealFigures,
    ModelResult,
    SystemResult,
    save,
)
from benchmarks.rounds import Start
from benchmarks.step_breakdown import PARTS, REST, StepBreakdown
from layerskip_vllm.measure.spread import Spread

MIB = 1 << 20
FLAT = {m: ForwardTime(0.1, 0.01) for m in (1, 2, 5, 10)}


def spread(value):
    return Spread(value, value - 0.1, value + 0.1, value - 0.2, value + 0.2)


def batch(batch_size, speedup, acceptance=None):
    return BatchFigures(
        batch_size=batch_size,
        tokens_per_s=spread(10 * speedup * batch_size),
        speedup=spread(speedup),
        tokens_per_step=3.0 if acceptance else 1.0,
        time_to_first_token_ms=spread(120.0),
        time_per_output_token_p50_ms=90.0,
        time_per_output_token_p99_ms=99.0,
        acceptance_rate=acceptance,
        mean_acceptance_length=acceptance and 1 + 4 * acceptance,
        acceptance_per_token=acceptance,
        num_texts=10,
        num_texts_equal=9 if acceptance else 10,
    )


def breakdown(batch_size):
    parts = dict.fromkeys([*PARTS, REST], 1.0)
    return StepBreakdown(batch_size, sum(parts.values()), parts, 3.0)


def system(name, speedup, acceptance=None):
    start = Start(15.0, 10.0, Memory(300 * MIB, 100 * MIB), 1000)
    return SystemResult(
        name=name,
        arguments={},
        starts=[start, start],
        peak_rss_bytes=200 * MIB,
        anonymous_bytes=100 * MIB,
        batches=[batch(size, speedup, acceptance) for size in (1, 2)],
        step_breakdowns=[breakdown(size) for size in (1, 2)],
    )


def result(**changes):
    cycle = IdealCycle.of(
        ForwardTimes(FLAT), batch_size=1, num_speculative_tokens=4, exit_layer=2, num_layers=6
    )
    values = {
        "name": "dialled",
        "description": "a model",
        "dtype": "bfloat16",
        "exit_layer": 2,
        "num_layers": 6,
        "num_speculative_tokens": 4,
        "weight_bytes": 500 * MIB,
        "kv_cache_bytes": 64 * MIB,
        "calibration": None,
        "num_rounds": 5,
        "max_tokens": 96,
        "temperature": 0.0,
        "environment": Environment("today", "command", "abc", "cpu", 2, 24 << 30, "3.11", {}, {}),
        "groups": [["plain", "self"]],
        "systems": [
            system("plain", 1.0),
            system("self", 1.7, acceptance=0.8),
            system("self-default", 1.6, acceptance=0.8),
        ],
        "forward_times": FLAT,
        "ideals": [IdealFigures(size, cycle, 3.0, cycle.speedup(3.0)) for size in (1, 2)],
    }
    return ModelResult(**(values | changes))


def test_report_names_every_system_and_figure():
    text = markdown([result()])
    assert "| self | 17.0; 1.70 [1.60, 1.80] | 34.0; 1.70 [1.60, 1.80] |" in text
    assert "| self | 1 | 120 | 90.0 | 99.0 | 0.80 | 4.20 | 0.80 | 9 of 10 |" in text
    assert "| plain | 1 | 120 | 90.0 | 99.0 | - | - | - | 10 of 10 |" in text
    assert "| rows M | 1 | 2 | 5 | 10 |" in text
    assert "commit abc" in text


def test_measured_speedup_is_beside_the_ideal_one():
    cycle = IdealCycle(draft_s=1, early_s=0, remaining_s=1, head_s=0, plain_s=1)
    ideals = [IdealFigures(1, cycle, 4.0, 2.0)]
    assert markdown([result(ideals=ideals)]).count(" | 4.00 | 2.00 | 1.70 | 0.85 |") == 1


def test_without_forward_times_there_is_no_ideal_section():
    assert "ideal" not in markdown([result(forward_times={}, ideals=[])])


def test_json_holds_every_field(tmp_path):
    path = tmp_path / "results.json"
    save([result()], path)
    (entry,) = json.loads(path.read_text())
    assert entry == json.loads(json.dumps(dataclasses.asdict(result())))
    assert entry["systems"][1]["batches"][0]["speedup"]["median"] == 1.7
    assert entry["forward_times"]["5"] == {"layers_s": 0.1, "head_s": 0.01}


@pytest.mark.parametrize("changes", [{}, {"forward_times": {}, "ideals": []}])
def test_picture_is_written(tmp_path, changes):
    path = tmp_path / "dialled.png"
    draw(result(**changes), path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_differing_text_makes_the_result_inexact():
    assert not result().is_exact
    assert result(systems=[system("plain", 1.0)]).is_exact
