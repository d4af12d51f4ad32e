"""Hooks wrap once, call the original, keep a method's kind, and are installed only if needed."""

import importlib
import json
import subprocess
import sys

import pytest

from layerskip_vllm.compat import every_process, worker
from layerskip_vllm.compat.install import hooks_of, install_hooks
from layerskip_vllm.compat.wrapping import wrap

PROBES = """
import importlib
import json
import sys

from layerskip_vllm.compat import every_process, worker
from layerskip_vllm.compat.install import hooks_of, install_hooks
from vllm.platforms import current_platform


def needed(folder):
    return [hook.__name__.rpartition(".")[2] for hook in hooks_of(folder) if hook.is_needed()]


def before_and_after(folder):
    before = needed(folder)
    install_hooks(folder)
    return before, needed(folder)


report = {"every_process": before_and_after(every_process), "loaded": list(sys.modules)}
current_platform.register_triton_kernel_overrides()  # as a worker does
report["worker"] = before_and_after(worker)
print("REPORT", json.dumps(report))
"""


@pytest.fixture(scope="module")
def report():
    """Results of the probes in a separate process, before and after installing the hooks."""
    run = subprocess.run(
        [sys.executable, "-c", PROBES], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("REPORT")]
    return json.loads(line.removeprefix("REPORT"))


@pytest.fixture
def host():
    class Host:
        def method(self, value):
            """Doc."""
            return value

        @staticmethod
        def static(value):
            return value

    return Host


def add_one(original, *args):
    return original(*args) + 1


@pytest.mark.parametrize("times", [1, 3])
def test_a_hook_wraps_once_however_often_it_is_installed(host, times):
    for _ in range(times):
        wrap(host, "method", add_one)
        wrap(host, "static", add_one)
    assert host().method(1) == 2
    assert host.static(1) == host().static(1) == 2
    assert host.method.__doc__ == "Doc."


def test_only_needed_modules_are_installed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "some_hooks"
    folder.mkdir()
    (folder / "__init__.py").write_text("installed = []")
    for name, is_needed in (("one", True), ("other", False)):
        (folder / f"{name}.py").write_text(
            "import some_hooks\n"
            f"def is_needed(): return {is_needed}\n"
            f"def install(): some_hooks.installed.append({name!r})\n"
        )
    some_hooks = importlib.import_module("some_hooks")
    install_hooks(some_hooks)
    assert some_hooks.installed == ["one"]


@pytest.mark.parametrize("folder", [every_process, worker], ids=lambda f: f.__name__)
def test_every_module_of_a_folder_is_a_hook(folder):
    hooks = list(hooks_of(folder))
    assert hooks
    assert all(callable(hook.is_needed) and callable(hook.install) for hook in hooks)


@pytest.mark.parametrize(
    ("folder", "by_behaviour"),
    [
        ("every_process", {"ray_executor", "step_stats_log"}),
        ("worker", {"rows_without_adapter"}),
    ],
)
def test_behaviour_probes_detect_vllm_before_and_after_the_repair(report, folder, by_behaviour):
    before, after = map(set, report[folder])
    assert before >= by_behaviour
    assert before - after == by_behaviour


def test_hooks_of_every_process_import_no_heavy_modules(report):
    assert "layerskip_vllm.compat.every_process.ray_executor" in report["loaded"]
    assert not set(report["loaded"]) & {
        "ray",
        "vllm.lora.ops.torch_ops",
        "vllm.v1.executor.ray_executor_v2",
        "vllm.v1.metrics.ray_wrappers",
        "vllm.v1.sample.rejection_sampler",
        "vllm.v1.worker.gpu_model_runner",
    }
