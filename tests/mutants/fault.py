"""A fault that the tests must notice."""

from dataclasses import dataclass

EXITS = (
    "engine/test_auto.py::test_an_exit_that_changes_every_step",
    "engine/test_auto.py::test_observing_steps_count_what_each_exit_would_draft",
)

SWITCHES = (
    "engine/test_step_machine.py::test_a_history_with_preemptions_and_all_kinds_of_drafts[self:auto]",
)


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
