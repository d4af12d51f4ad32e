"""Faults in the package that `make test` must notice, one at a time: `make mutants`.

python -m tests.mutation [NAME ...]

Each fault replaces one text in a copy of the package, and runs the tests that should fail in a copy
of the repository. The same tests run first without a fault, and must pass.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("layerskip_vllm", "tests", "benchmarks")
"""pytest resolves links, and would import what lies beside them."""
LIMIT_S = 1200
PASSED, FAILED = 0, 1
"""pytest's exit codes; others mean that no test was run, or not to its end."""


@dataclass(frozen=True)
class Fault:
    """A text of the package, what is wrong in its place, and the tests that must fail."""

    name: str
    file: str
    """Under layerskip_vllm/."""
    right: str
    wrong: str
    tests: tuple[str, ...]
    """Arguments of pytest, under tests/."""


SCENARIOS = "engine/test_scenarios.py"

FAULTS = [
    Fault(
        "wrong layer cut",
        "models/split.py",
        "layers=decoder.layers[exit_layer:],",
        "layers=decoder.layers[exit_layer + 1 :],",
        (f"{SCENARIOS}::test_requests_of_unequal_length",),
    ),
    Fault(
        "residual lost between the segments",
        "models/split.py",
        "return hidden_states, residual.float(), normed_states",
        "return hidden_states, hidden_states.float(), normed_states",
        (f"{SCENARIOS}::test_requests_of_unequal_length",),
    ),
    Fault(
        "another request's adapter",
        "runner_v1/cpu.py",
        "inputs = inputs.masked_fill((lora_indices_tensor < 0)[:, None], 0)",
        "pass",
        ("engine/test_lora.py",),
    ),
]


def copy_repository(directory: Path) -> None:
    """Copy what tests import, and link the rest."""
    for path in ROOT.iterdir():
        if path.name in COPIED:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, directory / path.name, ignore=ignored)
        elif not path.name.startswith("."):
            (directory / path.name).symlink_to(path)


def run_tests(directory: Path, tests: Iterable[str]) -> int:
    """Run some tests in a copy of the repository; returns pytest's exit code."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(
            [*command, *(f"tests/{test}" for test in tests)],
            cwd=directory,
            env=os.environ | {"PYTHONPATH": str(directory)},
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
    """`caught` or `survived`, or why there is no telling."""
    with tempfile.TemporaryDirectory(prefix="layerskip-mutant-") as name:
        directory = Path(name)
        copy_repository(directory)
        file = directory / "layerskip_vllm" / fault.file
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        if text.count(fault.right) != 1:
            return f"stale: {fault.file} holds its text {text.count(fault.right)} times"
        file.write_text(text.replace(fault.right, fault.wrong), encoding="utf-8")
        code = run_tests(directory, fault.tests)
    return {PASSED: "survived", FAILED: "caught"}.get(code, f"broken: pytest exited with {code}")


def main(names: list[str]) -> int:
    """Print each fault's outcome; 0 if all were caught."""
    faults = [fault for fault in FAULTS if not names or fault.name in names]
    if unknown := {*names} - {fault.name for fault in faults}:
        print(f"{sorted(unknown)} are none of {[fault.name for fault in FAULTS]}")
        return 2
    with tempfile.TemporaryDirectory(prefix="layerskip-sound-") as name:
        copy_repository(Path(name))
        if run_tests(Path(name), sorted({test for fault in faults for test in fault.tests})):
            print("The tests fail without any fault.")
            return 1
    all_caught = True
    for fault in faults:
        outcome = outcome_of(fault)
        all_caught &= outcome == "caught"
        print(f"{outcome:10} {fault.name} ({fault.file})", flush=True)
    return 0 if all_caught else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
