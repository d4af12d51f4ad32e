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
from dataclasses import dataclass
from pathlib import Path

from tests import runner_v2

ROOT = Path(__file__).parents[1]
COPIED = ("layerskip_vllm", "tests", "benchmarks")
"""Not linked, since pytest resolves links and would import the originals' neighbours."""
LIMIT_S = 1200
PASSED, FAILED = 0, 1
"""pytest's exit codes; others mean that the tests did not run, or not to the end."""


@dataclass(frozen=True)
class Fault:
    """A text of the package, its faulty replacement, and the tests that must fail."""

    name: str
    file: str
    """Under layerskip_vllm/."""
    right: str
    wrong: str
    tests: tuple[str, ...]
    """Arguments of pytest, under tests/."""
    runner: str = "v1"
    """vLLM's model runner that the tests run on; see tests/runner_v2.py."""


SCENARIOS = ("engine/test_scenarios.py::test_requests_of_unequal_length",)
CHUNKED = ("engine/test_scenarios.py::test_chunked_prompts_mix_with_decodes",)
HISTORY = ("engine/test_step_machine.py",)
BATCH, PROPOSER = "spec_decode/draft_batch.py", "runner_v1/proposer.py"
CYCLE = ("engine/test_graphs.py::test_a_cycle_is_two_graphs",)
TOO_LONG = (
    "engine/test_sessions.py::test_an_input_beyond_max_model_len_is_refused_and_its_session_goes_on"
)
STATE = "runner_v2/model_state.py"
RUNNER, SCHEDULER = "runner_v1/runner.py", "scheduling/scheduler.py"

FAULTS = [
    Fault(
        "drafts that wait for the token budget lose their probabilities",
        "spec_decode/draft_probs.py",
        "{req_id: probs.clone() for req_id, probs in self._by_request.items()}",
        "{}",
        ("engine/test_skipped_drafts.py",),
    ),
    Fault(
        "a session's input that is too long is let through",
        "scheduling/sessions.py",
        "if num_tokens < self.max_model_len:",
        "if num_tokens <= self.max_model_len:",
        (TOO_LONG,),
    ),
    Fault(
        "a layer is left out at the cut",
        "models/split.py",
        "layers=decoder.layers[exit_layer:],",
        "layers=decoder.layers[exit_layer + 1 :],",
        SCENARIOS,
    ),
    Fault(
        "the residual is lost between the segments",
        "models/split.py",
        "return hidden_states, residual.float(), normed_states",
        "return hidden_states, hidden_states.float(), normed_states",
        SCENARIOS,
    ),
    Fault(
        "a request without an adapter gets another one's",
        "compat/worker/rows_without_adapter.py",
        "inputs = inputs.masked_fill((lora_indices_tensor < 0)[:, None], 0)",
        "pass",
        ("engine/test_lora.py",),
    ),
    Fault(
        "a slot too far within the block",
        BATCH,
        "slots * block_size + own % block_size",
        "slots * block_size + (own + 1) % block_size",
        HISTORY,
    ),
    Fault(
        "the next position's block",
        BATCH,
        "own // block_size",
        "np.minimum((own + 1) // block_size, block_table.shape[1] - 1)",
        HISTORY,
    ),
    Fault(
        "idle rows write to the first slot",
        BATCH,
        "own % block_size, padding_slot)",
        "own % block_size, 0)",
        ("engine/test_attention_metadata.py",),
    ),
    Fault(
        "exit states of another request",
        BATCH,
        "[np.repeat(rows, num_scheduled), steps]",
        "[np.repeat(rows[::-1], num_scheduled), steps]",
        SCENARIOS,
    ),
    Fault(
        "the exit state of the token before",
        BATCH,
        "[np.repeat(rows, num_scheduled), steps]",
        "[np.repeat(rows, num_scheduled), np.maximum(steps - 1, 0)]",
        SCENARIOS,
    ),
    Fault(
        "rows of the exit states are swapped",
        "spec_decode/exit_query_cache.py",
        "entries[: len(rows), step] = rows",
        "entries[: len(rows), step] = rows.flip(0)",
        SCENARIOS,
    ),
    Fault(
        "exit states live on",
        "spec_decode/exit_query_cache.py",
        "batch, self._batch = self._batch, None",
        "batch = self._batch",
        ("unit/test_exit_query_cache.py",),
    ),
    Fault(
        "a request resumes at another position",
        BATCH,
        "is_same_place & (num_scheduled",
        "(num_scheduled",
        ("unit/test_draft_batch.py",),
    ),
    Fault(
        "a request that was preempted resumes",
        RUNNER,
        "set(cached.req_ids) - set(cached.resumed_req_ids)",
        "set(cached.req_ids)",
        ("unit/test_resumption.py",),
    ),
    Fault(
        "the last draft has no exit state",
        PROPOSER,
        "with_last_draft=self.use_exit_query_cache",
        "with_last_draft=False",
        SCENARIOS,
    ),
    Fault(
        "no slot for the last draft",
        SCHEDULER,
        "self.num_lookahead_tokens += 1",
        "self.num_lookahead_tokens += 0",
        ("engine/test_endings.py",),
    ),
    Fault(
        "a draft after the last token",
        BATCH,
        "max_num_tokens - 2 - start_positions",
        "max_num_tokens - 1 - start_positions",
        ("engine/test_endings.py",),
    ),
    Fault(
        "draws for tokens that are not emitted are kept",
        "runner_v1/sampled_rows.py",
        "self[row].set_state(self._state_before[row])",
        "pass",
        ("engine/test_seeded.py",),
    ),
    Fault(
        "a row does not know the drafts before it",
        "runner_v1/row_processors.py",
        "request.output_token_ids + draft[:k]",
        "request.output_token_ids",
        ("engine/test_endings.py",),
    ),
    Fault(
        "penalties do not count drafts",
        "runner_v1/sampled_rows.py",
        "output + draft[:k]",
        "output",
        ("engine/test_seeded.py",),
    ),
    Fault(
        "rows of the last step keep their logits processors",
        "runner_v1/row_processors.py",
        "list(self._rows - rows)",
        "[]",
        ("engine/test_seeded.py",),
    ),
    Fault(
        "V1 hides no generator from the host",
        "runner_v1/runner.py",
        "for row in discarded.tolist() if row in generators",
        "for row in []",
        ("engine/test_seeded_scenarios.py::test_prompts_in_chunks_beside_decodes",),
    ),
    Fault(
        "requests in the middle of their prompts draw",
        "runner_v1/sampled_rows.py",
        "if not is_discarded[req_index]:",
        "if True:",
        ("engine/test_seeded_scenarios.py::test_prompts_in_chunks_beside_decodes",),
    ),
    Fault(
        "a request's own limit is ignored",
        SCHEDULER,
        "for req_id, limit in limits.items() if limit < num_drafts",
        "for req_id, limit in limits.items() if limit < 0",
        ("engine/test_requests.py::test_each_request_limits_its_drafts",),
    ),
    Fault(
        "prompts draft before their end",
        RUNNER,
        "np.where(self.discard_request_mask.np[:num_reqs], -1, limits)",
        "np.array(limits)",
        CHUNKED,
    ),
    Fault(
        "a slot's new owner has the old one's exit states",
        STATE,
        "self.num_exit_states[req_index] = 0",
        "pass",
        ("engine/test_exact.py::test_short_prompts_one_after_another",),
        "v2",
    ),
    Fault(
        "a graph resumes from other requests' exit states",
        STATE,
        "self._slots[: input_batch.num_reqs] = input_batch.idx_mapping",
        "self._slots[: input_batch.num_reqs] = input_batch.idx_mapping.flip(0)",
        CYCLE,
        "v2",
    ),
    Fault(
        "a plain step resumes",
        STATE,
        "return self.graphs_resume and num_tokens > num_reqs",
        "return self.graphs_resume",
        ("engine/test_graphs.py::test_each_draft_length_has_its_graphs",),
        "v2",
    ),
    Fault(
        "a graph resumes without exit states",
        "runner_v2/runner.py",
        "query_len != 1 and not model_state.may_resume",
        "False",
        ("engine/test_graphs.py::test_without_exit_states_no_graph_resumes",),
        "v2",
    ),
    Fault(
        "drafts follow rejected ones",
        "runner_v2/early_steps.py",
        "self._target_seq_lens[:num_reqs] - self._num_rejected[:num_reqs]",
        "self._target_seq_lens[:num_reqs] + 0",
        CYCLE,
        "v2",
    ),
    Fault(
        "the host waits for the rejected drafts",
        "runner_v2/speculator.py",
        "self._num_reqs.fill_(num_reqs)",
        "self._num_reqs.fill_(num_reqs + 0 * int(num_rejected.sum()))",
        ("engine/test_graph_safety.py::test_a_step_waits_for_nothing_on_the_device",),
        "v2",
    ),
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
            env=os.environ | {"PYTHONPATH": str(directory), runner_v2.VARIABLE: runner},
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
