"""What a reader sees: promises beside figures, and what is missed."""

import dataclasses
import json

import pytest

from benchmarks.checks import checks
from benchmarks.environment import Environment
from benchmarks.forward_time import ForwardTime, ForwardTimes
from benchmarks.ideal import IdealCycle
from benchmarks.memory import Memory
from benchmarks.plots import draw
from benchmarks.report import MISSED, markdown, thresholds
from benchmarks.result import (
    BatchFigures,
    Comparison,
    IdealFigures,
    ModelResult,
    SystemResult,
    save,
)
from benchmarks.rounds import Start
from benchmarks.spread import Spread
from benchmarks.where import PARTS, REST, Where

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


def where(batch_size, draft_ms):
    parts = dict.fromkeys([*PARTS, REST], 1.0) | {"draft: layers": draft_ms}
    return Where(batch_size, sum(parts.values()), parts, 3.0)


def system(name, speedup, *, acceptance=None, anonymous=100, kv=1000, engine_s=10.0, draft_ms=1.0):
    start = Start(engine_s + 5, engine_s, Memory(300 * MIB, 100 * MIB), kv)
    return SystemResult(
        name=name,
        arguments={},
        starts=[start, start],
        peak_rss_bytes=200 * MIB,
        anonymous_bytes=anonymous * MIB,
        batches=[batch(size, speedup, acceptance) for size in (1, 2)],
        where=[where(size, draft_ms) for size in (1, 2)],
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
        "exit_query_cache_bytes": 2 * MIB,
        "kv_cache_bytes": 64 * MIB,
        "dial": None,
        "num_rounds": 5,
        "max_tokens": 96,
        "environment": Environment("today", "command", "abc", "cpu", 2, 24 << 30, "3.11", {}, {}),
        "groups": [["plain", "self"]],
        "systems": [
            system("plain", 1.0),
            system("self", 1.7, acceptance=0.8),
            system("self-default", 1.6, acceptance=0.8),
        ],
        "forward_times": FLAT,
        "ideals": [IdealFigures(size, cycle, 3.0, cycle.speedup(3.0)) for size in (1, 2)],
        "comparisons": [
            Comparison("fixed K: over plain", "self", "plain", 1, spread(1.7), 1.65),
            Comparison("fixed K: over plain", "self", "plain", 2, spread(1.3), 1.45),
            Comparison("over ngram", "self", "ngram", 1, None, 2.0),
        ],
    }
    return ModelResult(**(values | changes))


def test_a_missed_threshold_says_so_and_a_reached_one_does_not():
    lines = thresholds(result()).splitlines()
    reached, missed = "1.70 [1.60, 1.80] (>= 1.65)", f"1.30 [1.20, 1.40] (>= 1.45) {MISSED}"
    assert f"| fixed K: over plain | {reached} | {missed} |" in lines


def test_what_was_not_measured_keeps_its_threshold():
    assert "| over ngram | - (>= 2.00) |  |" in thresholds(result()).splitlines()


def test_a_threshold_is_reached_at_its_very_value():
    assert Comparison("", "self", "plain", 1, spread(1.45), 1.45).is_reached is True
    assert Comparison("", "self", "plain", 1, spread(1.449), 1.45).is_reached is False
    assert Comparison("", "self", "plain", 1, None, 1.45).is_reached is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, [True, True, True]),
        ({"anonymous": 108}, [False, True, True]),  # 1 % of 500 MiB, and 2 MiB of states
        ({"anonymous": 107}, [True, True, True]),
        ({"kv": 999}, [True, False, True]),
        ({"engine_s": 11.1}, [True, True, False]),
    ],
)
def test_memory_capacity_and_start_up_are_held_against_plain(change, expected):
    systems = [system("plain", 1.0), system("self-default", 1.6, acceptance=0.8, **change)]
    assert [check.is_reached for check in checks(result(systems=systems))] == expected


@pytest.mark.parametrize(
    ("draft_ms", "acceptance", "expected"),
    [(8.0, 0.78, [True, True]), (9.0, 0.78, [False, True]), (8.0, 0.77, [True, False])],
)
def test_draft_vocabulary_is_held_against_the_full_one(draft_ms, acceptance, expected):
    # 1 ms each of LM head and rest come on top of the layers: 14 ms against draft_ms + 2.
    systems = [
        system("plain", 1.0),
        system("self", 1.7, acceptance=0.8, draft_ms=12.0),
        system("self-draft-vocab", 1.9, acceptance=acceptance, draft_ms=draft_ms),
    ]
    assert [check.is_reached for check in checks(result(systems=systems))] == expected


def test_report_names_every_system_and_figure():
    text = markdown([result()])
    assert "| self | 17.0; 1.70 [1.60, 1.80] | 34.0; 1.70 [1.60, 1.80] |" in text
    assert "| self | 1 | 120 | 90.0 | 99.0 | 0.80 | 4.20 | 0.80 | 9 of 10 |" in text
    assert "| plain | 1 | 120 | 90.0 | 99.0 | - | - | - | 10 of 10 |" in text
    assert "| rows M | 1 | 2 | 5 | 10 |" in text
    assert "commit abc" in text


def test_without_forward_times_there_is_no_ideal_section():
    assert "ideal" not in markdown([result(forward_times={}, ideals=[], comparisons=[])])


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


def test_a_text_that_differs_is_seen():
    assert not result().is_exact
    assert result(systems=[system("plain", 1.0)]).is_exact
