"""Two CPU processes, by torchrun and Ray Train, against one process with the same global batch."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import LAYERSKIP_VLLM
from tests.training.recipes import curve, run, run_command, write_recipe

pytestmark = pytest.mark.slow

TORCHRUN = [
    *(str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2"),
    *("--standalone", "--no-python", LAYERSKIP_VLLM, "train"),
]
FSDP = {"fsdp": True, "fsdp_config": {"transformer_layer_cls_to_wrap": "LlamaDecoderLayer"}}


@pytest.fixture(scope="module")
def single(directory):
    """One process with four samples per step; half of them skip the last layer."""
    return run(write_recipe(directory, "single"))


@pytest.mark.parametrize(
    ("name", "command", "arguments"),
    [
        ("ddp", TORCHRUN, {}),
        ("fsdp", TORCHRUN, FSDP),
        ("ray", [LAYERSKIP_VLLM, "train", "--ray-workers", "2"], {}),
    ],
    ids=["DDP", "FSDP", "Ray"],
)
def test_two_processes_have_the_loss_curve_of_one(directory, single, name, command, arguments):
    recipe = write_recipe(directory, name, per_device_train_batch_size=2, **arguments)
    reports = run_command(recipe, *command)
    assert curve(reports) == pytest.approx(curve(single), abs=1e-4)
    for exit_ in (3, 4):
        figure = f"loss_exit_{exit_}"
        assert curve(reports, figure) == pytest.approx(curve(single, figure), abs=1e-4)


def test_rows_without_targets_add_nothing(directory):
    """Cut after "ab", end-of-text tokens fill rows of their own: one of a step, or both."""
    (directory / "short.jsonl").write_text('{"text": "ab"}\n' * 40)
    data = {"train": {"files": [str(directory / "short.jsonl")]}, "sequence_length": 2}
    arguments = {"data": data, "max_steps": 25, "per_device_train_batch_size": 1}
    arguments |= {"logging_nan_inf_filter": False}  # it would report NaN as 0
    two_rows = arguments | {"per_device_train_batch_size": 2}
    single = curve(run(write_recipe(directory, "short", **two_rows)))
    assert all(map(math.isfinite, single))
    assert 0.0 in single
    accumulated = write_recipe(directory, "2 x 1", gradient_accumulation_steps=2, **arguments)
    assert curve(run(accumulated)) == pytest.approx(single, abs=1e-4)
    for name, fsdp in (("2 x DDP", {}), ("2 x FSDP", FSDP)):
        recipe = write_recipe(directory, name, **arguments, **fsdp)
        assert curve(run_command(recipe, *TORCHRUN)) == pytest.approx(single, abs=1e-4)


def run_on_ray(recipe: Path, num_workers: int) -> subprocess.CompletedProcess[str]:
    command = [LAYERSKIP_VLLM, "train", str(recipe), "--ray-workers", str(num_workers)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_too_many_workers_are_refused(directory):
    done = run_on_ray(write_recipe(directory, "too many"), 1000)
    assert done.returncode == 2
    assert "--ray-workers 1000 must be in [1, " in done.stderr


def test_a_ray_workers_error_is_one_sentence(directory):
    recipe = write_recipe(directory, "bad exit", layerskip={"rotation": 9})
    done = run_on_ray(recipe, 1)
    assert done.returncode == 2
    # Lines of the workers' logs may follow it.
    assert "\nlayerskip-vllm train: layerskip.rotation=9 must be in [1, 3]" in done.stderr
