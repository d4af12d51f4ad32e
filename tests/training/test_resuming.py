"""A run that ended early goes on as if it had not, whatever its data comes from."""

import json
import os
import signal
import subprocess
import sys

import pytest
from transformers import TrainerCallback

from tests.training.recipes import built, run, write_recipe

NUM_STEPS, LAST_STEP = 14, 8


class StoppedError(Exception):
    """Ends a run."""


class Stop(TrainerCallback):
    """Ends a run after a step, as a kill would."""

    def on_step_end(self, args, state, control, **kwargs):
        """End it."""
        if state.global_step == LAST_STEP + 1:
            raise StoppedError


def run_until_stopped(recipe) -> None:
    trainer = built(recipe)
    trainer.add_callback(Stop())
    with pytest.raises(StoppedError):
        trainer.train()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_files", [1, 3])
@pytest.mark.parametrize("streaming", [True, False], ids=["stream", "files"])
def test_a_resumed_run_sees_the_same_batches(directory, streaming, num_files, num_workers):
    """The data has 4 steps; a stream that was resumed in its second pass began a third one."""
    name = f"{streaming}{num_files}{num_workers}"
    for index in range(num_files):
        texts = [f"{n} and {n + index} is {2 * n + index}\n" for n in range(60 // num_files)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (directory / f"{name}-{index}.jsonl").write_text(lines)
    arguments = {
        "data": {
            "train": {"files": [str(directory / f"{name}-*.jsonl")]},
            "sequence_length": 64,
            "streaming": streaming,
            "shuffle_buffer": 7,
        },
        "max_steps": NUM_STEPS,
        "save_strategy": "steps",
        "save_steps": LAST_STEP,
        "dataloader_num_workers": num_workers,
    }
    uninterrupted = run(write_recipe(directory, f"{name} whole", **arguments))
    recipe = write_recipe(directory, f"{name} stopped", **arguments)
    run_until_stopped(recipe)
    assert run(recipe, resume=True)[:-1] == uninterrupted[:-1]


STEPS = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture(scope="module")
def uninterrupted(directory):
    """Its reports, without the last, which has timings."""
    return run(write_recipe(directory, "uninterrupted", **STEPS))[:-1]


def test_a_checkpoint_that_was_not_saved_to_its_end_is_left_out(directory, uninterrupted, caplog):
    recipe = write_recipe(directory, "half saved", **STEPS)
    run(recipe)
    last = directory / "half saved" / "checkpoint-6"
    state = (last / "trainer_state.json").read_text()
    for half in (state[: len(state) // 2], None):
        (last / "trainer_state.json").unlink(missing_ok=True)
        if half is not None:
            (last / "trainer_state.json").write_text(half)
        (last / "model.safetensors").write_bytes(b"half")
        assert run(recipe, resume=True)[:-1] == uninterrupted
        assert f"{last} was not saved to its end" in caplog.text


AT_STEP_4 = """
import os, resource, signal, sys
from layerskip_vllm.cli import main
from layerskip_vllm.training import run
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
method = sys.argv[2]
original = getattr(run.LayerSkipTrainer, method)
def patched(self, *args, **kwargs):
    result = original(self, *args, **kwargs)
    if self.state.global_step == 4:
        {event}
    return result
setattr(run.LayerSkipTrainer, method, patched)
sys.exit(main(["train", sys.argv[1]]))
"""
"""Runs a recipe in which something happens at step 4, after a method of the trainer."""


def run_with(event, method, recipe) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", AT_STEP_4.replace("{event}", event), str(recipe), method],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_full_disk_ends_in_one_line_and_loses_nothing(directory, uninterrupted):
    """No file may grow beyond 4 KiB from step 4 on, as on a disk without room."""
    recipe = write_recipe(directory, "no room", **STEPS)
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))"
    done = run_with(limit, "log", recipe)
    assert done.returncode == 2, done.stderr[-3000:]
    message = done.stderr.strip().splitlines()[-1]
    assert "layerskip-vllm train: checkpoint-4 cannot be saved in" in message
    assert "--resume continues from the last whole checkpoint" in message
    assert run(recipe, resume=True)[:-1] == uninterrupted


@pytest.mark.parametrize("method", ["training_step", "save_model"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_a_killed_run_loses_nothing(directory, uninterrupted, name, method):
    """In the middle of step 5, or when checkpoint-4 has its weights and nothing else."""
    recipe = write_recipe(directory, f"{name} {method}", **STEPS)
    done = run_with(f"os.kill(os.getpid(), signal.{name})", method, recipe)
    assert done.returncode == -getattr(signal, name), done.stderr[-3000:]
    output = directory / f"{name} {method}"
    assert (output / "checkpoint-4" / "model.safetensors").exists()
    assert not (output / "model.safetensors").exists()
    assert run(recipe, resume=True)[:-1] == uninterrupted


def test_a_run_that_saves_at_sigterm_goes_on_from_there(directory, uninterrupted):
    """transformers waits 3 s before it saves, so that a kill within them finds it not writing."""
    recipe = write_recipe(directory, "jit", **STEPS, enable_jit_checkpoint=True)
    event = "os.kill(os.getpid(), signal.SIGTERM); import time; time.sleep(4)"
    done = run_with(event, "training_step", recipe)
    assert done.returncode == 2, done.stderr[-3000:]
    message = done.stderr.strip().splitlines()[-1]
    assert (
        "layerskip-vllm train: stopped after step 5 of 6: --resume continues from there" in message
    )
    assert not (directory / "jit" / "model.safetensors").exists()
    assert run(recipe, resume=True)[:-1] == uninterrupted


def test_a_final_checkpoint_is_there_at_once_or_not_at_all(directory, monkeypatch):
    recipe = write_recipe(directory, "at once", max_steps=2, save_strategy="steps", save_steps=1)

    def fail(*_args):
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr("layerskip_vllm.training.run._complete", fail)
        with pytest.raises(StoppedError):
            run(recipe)
    output = directory / "at once"
    assert not {"config.json", "model.safetensors"} & {path.name for path in output.iterdir()}
    run(recipe, resume=True)
    assert {"config.json", "model.safetensors", "token_counts.json"} <= {
        path.name for path in output.iterdir()
    }
    assert not (output / "unfinished").exists()
