"""What `make gpu-check` compares, measures and reports; exactness runs on the CPU here."""

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.calibrate_acceptance import Agreement
from benchmarks.gpu import graphs
from benchmarks.gpu.comparison import Difference, Reference, differences, max_gap
from benchmarks.gpu.exactness import ExactnessTask
from benchmarks.gpu.forwards import ForwardTask
from benchmarks.gpu.models import CheckpointTask, find_scale
from benchmarks.gpu.records import (
    Checkpoint,
    EngineStart,
    Exactness,
    Failure,
    Forward,
    Launches,
    Phases,
    Speed,
    SyncCheck,
)
from benchmarks.gpu.report import DIFFERENT, EQUAL, REPORTED, TIE, has_failed, markdown, verdict
from benchmarks.models import PreparedModel

PLAIN_IDS = [[1, 2, 3], [4, 5, 6]]
LOGPROBS = [
    [{1: -0.5}, {2: -0.1, 9: -0.35}, {3: 0.0}],
    [{4: -0.5}, {5: -0.5}, {6: -0.25, 7: -0.5}],
]


def reference(second_run=PLAIN_IDS):
    return Reference(PLAIN_IDS, LOGPROBS, second_run)


def test_equal_tokens_have_no_difference():
    assert differences(reference(), PLAIN_IDS) == []
    assert max_gap([]) is None


def test_a_difference_names_request_token_and_gap():
    found = differences(reference(), [[1, 9, 8], [4, 5, 7]])
    assert found == [Difference(0, 1, -0.1 + 0.35), Difference(1, 2, 0.25)]
    assert max_gap(found) == 0.25


def test_the_gap_of_an_unlikely_token_is_unknown():
    found = differences(reference(), [[1, 9, 8], [8, 5, 6]])
    assert found[1] == Difference(1, 0, None)
    assert max_gap(found) is None


def test_the_gap_is_unknown_if_the_run_with_logprobs_has_another_text():
    other_text = [[8, 2, 3], [4, 5, 6]]
    assert differences(reference(other_text), [[1, 9, 3], [4, 5, 6]]) == [Difference(0, 1, None)]


def test_a_missing_token_is_a_difference():
    assert differences(reference(), [[1, 2], [4, 5, 6]]) == [Difference(0, 2, None)]


def exactness(**changes):
    values = {
        "job": "exactness float32 V2 random",
        "engine": "self:E, compiled, async",
        "reference": "plain, compiled",
        "is_required": True,
        "num_equal": 16,
        "num_requests": 16,
    }
    return Exactness(**(values | changes))


def different(max_gap, **changes):
    return exactness(num_equal=15, request=3, token=7, gap=max_gap, max_gap=max_gap, **changes)


@pytest.mark.parametrize(
    ("record", "expected", "fails"),
    [
        (exactness(), EQUAL, False),
        (different(1e-6), TIE, False),
        (different(0.25), DIFFERENT, True),
        (different(None), DIFFERENT, True),
        (different(0.25, is_required=False), REPORTED, False),
    ],
)
def test_only_a_float32_difference_beyond_a_tie_fails(record, expected, fails):
    assert verdict(record) == expected
    assert has_failed([record]) == fails


def test_the_report_says_where_tokens_differ():
    line = "| 15 of 16 | request 3, token 7 | 0.25 | 0.25 | **DIFFERENT** |"
    assert line in markdown([different(0.25)])
    assert "1 comparisons: 0 equal, 0 equal but for ties, 1 different" in markdown(
        [different(0.25)]
    )


def speed(system, tokens_per_s, batch_size=1, acceptance=None):
    return Speed(
        model="1b",
        system=system,
        batch_size=batch_size,
        num_repeats=3,
        tokens_per_s=tokens_per_s,
        min_tokens_per_s=tokens_per_s - 1,
        max_tokens_per_s=tokens_per_s + 1,
        tokens_per_step=1.0,
        acceptance_rate=acceptance,
        acceptance_per_token=acceptance,
        mean_acceptance_length=acceptance and 1 + 4 * acceptance,
    )


def test_a_speed_stands_beside_its_ratio_to_plain_of_this_run():
    text = markdown([speed("plain", 400), speed("self-v2", 600, 1, 0.81), speed("self-v2", 900, 4)])
    assert "| batch 1 | 400 | - | - | - | 600; 1.50 | - | - |" in text
    assert "| batch 4 | - | - | - | - | 900 | - | - |" in text
    assert "| `self:E` V2, batch 1 | 599 to 601 | 1.00 | 0.81 | 0.81 | 4.24 |" in text


def test_the_measured_speed_up_stands_beside_the_ideal():
    """E = 4 of 16 layers, K = 4. A step takes 1.6 ms of layers and 0.4 of head at any M."""
    forwards = [Forward("1b", num_rows, 2.0, 0.4) for num_rows in (1, 5, 4, 20)]
    fast = replace(speed("self-v2", 600), tokens_per_step=3.0)
    vocab = replace(speed("self-v2-vocab", 700), tokens_per_step=3.0)
    records = [speed("plain", 400), fast, vocab, speed("self-v2", 900, 4), *forwards]
    # 5 early steps, 4 heads, the remaining layers, a head: 5 * 0.4 + 4 * 0.4 + 1.2 + 0.4 = 5.2 ms.
    line = "| `self:E` V2, batch 1 | 3.00 | 1.15 | 1.50 | 1.30 |"
    assert line in markdown(records)
    assert markdown(records).count("| `self:E` V2, batch 4 |") == 1  # no plain to compare with
    assert "ideal" not in markdown(records[:3])


def test_the_report_says_how_the_model_was_made():
    made = Checkpoint("1b", "Llama-3.2-1B's shape", 0.0586, 0.801, 0.97, 1, 1 << 31, 30.0)
    text = markdown([made])
    assert "### Llama-3.2-1B's shape" in text
    assert "agrees with the last layer on 0.801 of the text (target 0.80, 1 tries" in text


def test_the_report_shows_what_happens_inside_a_step():
    error = SyncCheck("1b", "self-v2", "decode", {"propose": 1}, "RuntimeError: synchronizing")
    start = EngineStart("j", "e", "r", "FLASH_ATTN", True, "FULL", 9, {"propose": 5}, 3 << 20, 60.0)
    records = [
        start,
        Launches("1b", "self-v2", 1, 16, {"cudaGraphLaunch": 2.0}, 210.0, 1.25),
        Phases("1b", "self-v2", 1, 16, 3.0, {"verify": 1.0}, {"verify": 2.0}),
        SyncCheck("1b", "self-v2", "decode", {"propose": 16}),
    ]
    text = markdown(records)
    assert "| j: e | r | FLASH_ATTN | async | FULL | 9 | propose 5 | 3 | 60.0 |" in text
    assert "| 1b self-v2 | 1 | 210.0 | 1.250 | cudaGraphLaunch 2.0 |" in text
    assert "| 1b self-v2 | 1 | 3.000 | 1.000 / 2.000 | - | - |" in text
    assert "- 1b self-v2, decode: calls: propose 16: none" in text
    assert not has_failed(records)
    assert has_failed([*records, error])
    assert "RuntimeError: synchronizing" in markdown([error])


def event(key, count, device, device_us=0.0, is_user_annotation=False):
    return SimpleNamespace(
        key=key,
        count=count,
        device_type=SimpleNamespace(name=device),
        self_device_time_total=device_us,
        is_user_annotation=is_user_annotation,
    )


def test_launches_and_device_time_count_once():
    events = [
        event("cudaLaunchKernel", 3, "CPU"),
        event("cuLaunchKernelEx", 2, "CPU"),
        event("cudaGraphLaunch", 1, "CPU"),
        event("cudaMemcpyAsync", 4, "CPU"),
        event("cudaEventRecord", 9, "CPU"),
        event("aten::mm", 3, "CPU", device_us=50.0),
        event("gemm", 3, "CUDA", device_us=50.0),
        event("step", 1, "CUDA", device_us=90.0, is_user_annotation=True),
    ]
    calls = {
        "cudaLaunchKernel": 3,
        "cuLaunchKernelEx": 2,
        "cudaGraphLaunch": 1,
        "cudaMemcpyAsync": 4,
    }
    assert graphs.count_events(events) == (Counter(calls), 3, 50.0)


def test_a_synchronization_inside_a_guarded_method_is_an_error(monkeypatch):
    modes = ["default"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    class Speculator:
        def propose(self):
            if modes[-1] == "error":
                raise RuntimeError("called a synchronizing CUDA operation")

    calls, speculator = Counter(), Speculator()
    guard = lambda method, label: graphs.guarded(method, label, calls)  # noqa: E731
    with (
        graphs.replaced([(speculator, "propose", "propose")], guard),
        pytest.raises(RuntimeError, match="synchronizing"),
    ):
        speculator.propose()
    assert calls == {"propose": 1}
    assert modes == ["default", "error", "default"]
    speculator.propose()


def test_a_good_guess_of_the_scale_is_measured_once():
    found = find_scale(lambda scale: Agreement(0.81, [], 1.0), 0.8, 0.02, guess=0.05)
    assert (found.scale, len(found.tries)) == (0.05, 1)


@pytest.mark.parametrize("guess", [0.001, 0.9])
def test_a_bad_guess_of_the_scale_is_corrected(guess):
    measure = lambda scale: Agreement(max(1 - scale**0.5, 0), [], 1.0)  # noqa: E731
    found = find_scale(measure, 0.8, 0.01, guess)
    assert abs(found.agreement.mean - 0.8) <= 0.01
    assert found.tries[0][0] == guess


def test_a_checkpoint_and_its_cut_are_complete(tmp_path):
    from safetensors.torch import load_file

    records = []
    task = CheckpointTask("small", str(tmp_path), "cpu", 8, 16, 4, 8, 32)
    task.run(records.append)
    prepared = PreparedModel(**json.loads((tmp_path / "prepared.json").read_text()))
    assert prepared.draft_vocab["draft_vocab_size"] == 256
    assert [len(prompt) for prompt in prepared.prompts] == [8] * 4
    weights = {
        path: {key for file in (tmp_path / path).glob("*.safetensors") for key in load_file(file)}
        for path in ("model", "cut")
    }
    late = {key for key in weights["model"] if key.startswith(("model.layers.2", "model.layers.5"))}
    assert len(late) == 18
    assert weights["model"] - weights["cut"] >= late
    assert {"lm_head.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight"} <= (
        weights["cut"]
    )
    layers = [json.loads((tmp_path / p / "config.json").read_text()) for p in ("model", "cut")]
    assert [config["num_hidden_layers"] for config in layers] == [6, 2]
    assert records[0].weight_bytes == prepared.weight_bytes


@pytest.mark.slow
def test_plains_steps_are_timed_at_each_number_of_rows(tmp_path):
    records = []
    CheckpointTask("small", str(tmp_path), "cpu", 8, 16, 4, 8, 32).run(lambda _: None)
    task = ForwardTask("forwards", str(tmp_path / "prepared.json"), [1, 4], False, True)
    task.run(records.append)
    forwards = records[1:]
    assert [record.num_rows for record in forwards] == [1, 4, 5, 20]
    assert all(0 < record.head_ms < record.step_ms for record in forwards)


def exactness_task(tmp_path, variants):
    return ExactnessTask(
        job="exactness float32 V1 random",
        model="random",
        dtype="float32",
        attention_backend=None,
        variants=variants,
        directory=str(tmp_path),
        num_prompts=3,
        max_tokens=12,
        on_gpu=False,
    )


def test_self_speculation_is_exact_on_the_cpu(tmp_path):
    """The whole part: engines, both runs of plain vLLM, the comparison."""
    records = []
    exactness_task(tmp_path, ["plain, eager", "self:E, eager"]).run(records.append)
    plain, own, found = records
    assert isinstance(plain, EngineStart)
    assert own.runner.startswith("layerskip_vllm.runner_v")
    assert (found.num_equal, found.num_requests, found.is_required) == (3, 3, True)
    assert (found.engine, found.reference) == ("self:E, eager", "plain, eager")


def test_an_engine_without_its_reference_is_a_failure(tmp_path):
    records = []
    exactness_task(tmp_path, ["self:E, eager"]).run(records.append)
    (failure,) = records
    assert isinstance(failure, Failure)
    assert failure.job == "exactness float32 V1 random: self:E, eager"
    assert "the plain engine to compare with did not run" in failure.log_tail[-1]
