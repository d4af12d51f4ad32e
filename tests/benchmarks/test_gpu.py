"""`make gpu-check` without a GPU: its plan, its deadline, and what survives a failure or a kill."""

import os
import signal
import subprocess
import sys

import pytest

from benchmarks.environment import REPOSITORY
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import run, worker
from benchmarks.gpu.engines import runner_variables
from benchmarks.gpu.exactness import RUNNER_VARIANTS
from benchmarks.gpu.jobs import Job, JobProcess
from benchmarks.gpu.models import CheckpointTask
from benchmarks.gpu.plan import PARTS, steps
from benchmarks.gpu.records import Done, Failure, NotRun, Planned, append, of_kind, read
from benchmarks.gpu.run import Results, Runner
from benchmarks.gpu.versions import NO_GPU, relevant_variables


@pytest.fixture(autouse=True)
def restored_environment(monkeypatch):
    """The command sets variables and signal handlers for its jobs."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(command, "set_up_process", lambda: None)


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "out")


def job(name, needs_s=1.0, model="unknown", requires=None):
    return Job(name, "1b", CheckpointTask(model, "/unused", "cpu"), needs_s, requires=requires)


class Clock:
    """Seconds that pass only when a job runs."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """Jobs end at once and take as long as they need."""
    clock = Clock()

    class Process:
        def __init__(self, job, results, log_dir, limit_s):
            self.job, self.log = job, log_dir

        def poll(self):
            clock.now += self.job.needs_s
            return Done(self.job.name, self.job.needs_s)

        def kill(self):
            pass

    monkeypatch.setattr(run, "JobProcess", Process)
    return clock


def all_jobs(tmp_path, parts=PARTS):
    return [job for step in steps(tmp_path, parts) for job in step]


def test_the_plan_begins_with_float32_and_the_default_runner(tmp_path):
    names = [job.name for job in all_jobs(tmp_path)]
    assert {"exactness float32 V1 random", "exactness float32 V2 random"} <= set(names[:4])
    assert names[4:7] == ["speed 1b plain", "speed 1b self-v2", "speed 1b self-v2-vocab"]
    assert len(set(names)) == len(names)


def test_a_model_is_made_in_a_step_before_its_speed_is_measured(tmp_path):
    made = set()
    for step in steps(tmp_path, PARTS):
        assert all(job.requires is None or job.requires in made for job in step)
        made |= {
            f"{task.directory}/prepared.json" for job in step if is_checkpoint(task := job.task)
        }


def is_checkpoint(task):
    return isinstance(task, CheckpointTask)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_brings_all_that_it_needs(tmp_path, part):
    jobs = all_jobs(tmp_path, [part])
    assert {job.part for job in jobs} == {part}
    assert (part == "exactness") or is_checkpoint(jobs[0].task)


def test_a_worker_knows_every_kind_of_task(tmp_path):
    tasks = [job.task for step in steps(tmp_path) for job in step]
    assert {type(task) for task in tasks} == set(worker.TASKS.values())


def test_nothing_runs_beside_a_job_that_is_timed(tmp_path):
    assert all(
        len(step) == 1 for step in steps(tmp_path) if any("speed" in job.name for job in step)
    )


def test_jobs_choose_their_model_runner_by_its_variable(tmp_path):
    chosen = {job.name: job.variables.get("VLLM_USE_V2_MODEL_RUNNER") for job in all_jobs(tmp_path)}
    assert chosen["speed 1b plain"] is None
    assert chosen["speed 1b self-v1"] == "0"
    assert chosen["exactness bfloat16 V2 random"] == "1"
    assert runner_variables(None) == {}


@pytest.mark.parametrize("runner", ["V1", "V2"])
def test_every_engine_follows_the_plain_one_that_it_is_compared_with(runner):
    plain = set()
    for variant in RUNNER_VARIANTS[runner]:
        assert not variant.is_self or variant.is_eager in plain
        plain |= set() if variant.is_self else {variant.is_eager}


def test_what_does_not_fit_is_named_and_a_shorter_job_behind_it_runs(results, tmp_path, clock):
    runner = Runner(results, tmp_path, 100, side_by_side=1, clock=clock)
    runner.run([(job("first", 60),), (job("long", 50),), (job("short", 40),)])
    records = list(read(results.path))
    assert [record.job for record in of_kind(records, Done)] == ["first", "short"]
    assert of_kind(records, NotRun) == [NotRun("long", "40 s left, needs 50 s")]
    assert "- long: not run: 40 s left, needs 50 s" in results.report_path.read_text()


def test_a_job_without_its_model_is_not_run(results, tmp_path, clock):
    runner = Runner(results, tmp_path, 100, side_by_side=1, clock=clock)
    runner.run([(job("speed", requires=str(tmp_path / "1b" / "prepared.json")),)])
    assert list(read(results.path)) == [NotRun("speed", "its model was not made (1b)")]


def test_a_failing_job_is_reported_with_its_log_and_the_next_one_runs(results, tmp_path):
    Runner(results, tmp_path, 60, side_by_side=2).run([(job("bad", 20), job("worse", 20))])
    failures = of_kind(list(read(results.path)), Failure)
    assert {failure.job for failure in failures} == {"bad", "worse"}
    assert failures[0].reason.startswith("ended with exit code 1 after")
    assert failures[0].log_tail[-1] == "KeyError: 'unknown'"
    assert "KeyError: 'unknown'" in results.report_path.read_text()


def test_a_job_past_its_limit_is_killed(results, tmp_path):
    process = JobProcess(job("slow"), results.path, tmp_path, limit_s=0)
    outcome = process.poll()
    assert outcome == Failure("slow", "stopped after 0 s, its limit", outcome.log_tail)
    assert process.process.returncode is not None


def test_a_job_ends_with_the_process_that_started_it(tmp_path):
    """Or an engine would hold the GPU's memory after a kill."""
    code = (
        "import subprocess, sys, time\n"
        "from benchmarks.gpu.jobs import end_with_parent\n"
        "end_with_parent(); print('ready', flush=True); time.sleep(60)"
    )
    parent = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {code!r}], start_new_session=True)\n"
        "child.wait()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    assert process.stdout.readline() == "ready\n"
    process.kill()
    # The child holds the other end of the pipe: it closes when the child ends.
    assert process.stdout.read() == ""
    process.wait()


def test_a_killed_run_keeps_its_records_and_its_report(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from benchmarks.gpu.records import Done, Planned\n"
        "from benchmarks.gpu.run import Results\n"
        "results = Results(Path(sys.argv[1]))\n"
        "results.add(Planned(540, ['one', 'two'], ['7b']))\n"
        "results.add(Done('one', 12.0))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=REPOSITORY, check=False)
    assert killed.returncode == -signal.SIGKILL
    planned = Planned(540, ["one", "two"], ["7b"])
    assert list(read(tmp_path / "results.jsonl")) == [planned, Done("one", 12.0)]
    report = (tmp_path / "report.md").read_text()
    assert "- two: no outcome: it waited or ran when this was written" in report
    assert "- part 7b: not asked for" in report
    assert "Jobs: 1 done, 0 failures, 1 not run." in report


def test_an_incomplete_line_costs_no_other_record(tmp_path):
    path = tmp_path / "results.jsonl"
    append(path, Done("before", 1.0))
    with path.open("a") as file:
        file.write('{"kind": "Done", "job": "in the mid')
    append(path, Done("after", 2.0))
    assert list(read(path)) == [Done("before", 1.0), Done("after", 2.0)]


def test_without_a_gpu_it_ends_at_once_and_says_what_is_needed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert command.main(["--output", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert message.startswith(NO_GPU.split("{")[0])
    assert message.startswith("no CUDA device is visible; ")
    assert not (tmp_path / "out").exists()


def test_an_interruption_prints_the_report_and_fails(monkeypatch, tmp_path, capsys):
    def interrupted(self, steps):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "why_no_gpu", lambda: None)
    monkeypatch.setattr(command.Runner, "run", interrupted)
    assert command.main(["--output", str(tmp_path), "--part", "7b", "--work", str(tmp_path)]) == 1
    assert "- speed 7b plain: no outcome" in capsys.readouterr().out
    assert not list(tmp_path.glob("layerskip-gpu-*"))


def test_the_work_directory_is_deleted(tmp_path):
    with command.work_directory(tmp_path / "given", tmp_path) as directory:
        (directory / "model").mkdir()
        assert directory.parent == tmp_path / "given"
    assert not directory.exists()


def test_checkpoints_go_where_there_is_room(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "SHARED_MEMORY", tmp_path / "shm")
    monkeypatch.setattr(command.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    for name, has_room in (("shm", False), ("tmp", True)):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(
            command, "_has_room", lambda path, n=name, r=has_room: r and path.name == n
        )
        with command.work_directory(None, tmp_path / "out") as directory:
            assert directory.parent.name == (name if has_room else "out")


def test_the_report_shows_relevant_variables_and_no_secret(monkeypatch):
    for name in ("VLLM_CACHE_ROOT", "VLLM_API_KEY", "HF_TOKEN", "HOME"):
        monkeypatch.setenv(name, "value")
    names = set(relevant_variables())
    assert "VLLM_CACHE_ROOT" in names
    assert not {"VLLM_API_KEY", "HF_TOKEN", "HOME"} & names


def test_an_interrupted_run_ends_its_jobs(results, tmp_path, monkeypatch):
    started = []

    class Interrupted(JobProcess):
        def poll(self):
            started.append(self.process)
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "JobProcess", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        Runner(results, tmp_path, 60, side_by_side=1).run([(job("slow"),)])
    assert started[0].returncode is not None
    assert not os.path.exists(f"/proc/{started[0].pid}")
