"""The order in which systems are measured, and the results that are kept."""

from types import SimpleNamespace

from benchmarks.rounds import Schedule, measure
from benchmarks.step_breakdown import StepBreakdown
from benchmarks.systems import System
from tests.benchmarks.prepared import model


class Child:
    """A system's process with scripted answers, which records the order of calls."""

    start_s = 0.0
    ready = SimpleNamespace(engine_start_s=0.0, starting=None, kv_cache_tokens=None)

    def __init__(self, name, step_ms, asked):
        self.name, self.step_ms, self.asked = name, iter(step_ms), asked

    def call(self, _what, prompts, max_tokens):
        self.asked.append(self.name)
        return StepBreakdown(len(prompts), next(self.step_ms), {}, float(max_tokens))

    def memory(self):
        return None


def test_step_breakdowns_are_measured_in_turns_and_the_median_one_is_kept():
    asked = []
    children = {
        "plain": Child("plain", [3.0, 1.0, 9.0], asked),
        "self": Child("self", [8.0, 2.0, 4.0], asked),
    }
    # They serve no batch, so they only decode for the breakdown.
    systems = {name: System(name, "vllm", {}, max_batch_size=0) for name in children}
    schedule = Schedule(batch_sizes=[1], num_rounds=1, max_tokens=8, with_breakdown=list(systems))
    group = measure(model(), systems, children, schedule)
    assert asked == ["plain", "self"] * 3
    kept = {
        name: [breakdown.step_ms for breakdown in breakdowns]
        for name, breakdowns in group.step_breakdowns.items()
    }
    assert kept == {"plain": [3.0], "self": [4.0]}
