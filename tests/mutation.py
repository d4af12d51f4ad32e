"""Faults in the package that `make test` must notice, one at a time: `make mutants`.

python -m tests.mutation [NAME ...]

Each fault replaces one text in a copy of the repository, and runs the tests that should then fail.
The same tests must first pass without a fault.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests import runner_v2 as emulation
from tests.mutants import cycle, runner_v1, runner_v2, sampling, scheduling
from tests.mutants.fault import Fault

ROOT = Path(__file__).parents[1]
COPIED = ("layerskip_vllm", "tests", "benchmarks")
"""Not linked, since pytest resolves links and would import the originals' neighbours."""
LIMIT_S = 1200
PASSED, FAILED = 0, 1
"""pytest's exit codes; others mean that the tests did not run, or not to the end."""

FAULTS = [
    *cycle.FAULTS,
    *sampling.FAULTS,
    *runner_v1.FAULTS,
    *runner_v2.FAULTS,
    *scheduling.FAULTS,
]


def copy_repository(directory: Path) -> None:
    """Copy the folders that tests import, and link the rest."""
    for path in ROOT.iterdir():
        if path.name in COPIED:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, directory / path.name, ignore=ignored)
        elif not path.name.startswith("."):
            (directory / path.name).symlink_to(path)


def run_tests(directory: Path, tests: Iterable[str], runner: str) -> int:
    """Run some tests in a copy of the repository; returns pytest's exit code."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, *(f"tests/{test}" for test in tests)],
            cwd=directory,
            env=os.environ | {"PYTHONPATH": str(directory), emulation.VARIABLE: runner},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return FAILED
    if done.returncode not in (PASSED, FAILED):
        print(done.stdout[-3000:])
    return done.returncode


def outcome_of(fault: Fault) -> str:
    """`caught` or `survived`, or why neither is known."""
    with tempfile.TemporaryDirectory(prefix="layerskip-mutant-") as name:
        directory = Path(name)
        copy_repository(directory)
        file = directory / "layerskip_vllm" / fault.file
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        if text.count(fault.right) != 1:
            return f"stale: {fault.file} holds its text {text.count(fault.right)} times"
        file.write_text(text.replace(fault.right, fault.wrong), encoding="utf-8")
        code = run_tests(directory, fault.tests, fault.runner)
    return {PASSED: "survived", FAILED: "caught"}.get(code, f"broken: pytest exited with {code}")


def main(names: list[str]) -> int:
    """Print each fault's outcome; 0 if all were caught."""
    faults = [fault for fault in FAULTS if not names or fault.name in names]
    if unknown := {*names} - {fault.name for fault in faults}:
        print(f"unknown: {sorted(unknown)}; known: {[fault.name for fault in FAULTS]}")
        return 2
    with tempfile.TemporaryDirectory(prefix="layerskip-sound-") as name:
        copy_repository(Path(name))
        for runner in sorted({fault.runner for fault in faults}):
            tests = {test for fault in faults if fault.runner == runner for test in fault.tests}
            if run_tests(Path(name), sorted(tests), runner):
                print(f"The tests on runner {runner} fail without any fault.")
                return 1
    all_caught = True
    for fault in faults:
        outcome = outcome_of(fault)
        all_caught &= outcome == "caught"
        print(f"{outcome:10} {fault.name} ({fault.file})", flush=True)
    return 0 if all_caught else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
