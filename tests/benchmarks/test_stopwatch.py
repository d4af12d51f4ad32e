"""Each second counts once, for the innermost timed call."""

import time

from benchmarks.stopwatch import Stopwatch


class Engine:
    def step(self):
        time.sleep(0.02)
        self.forward()
        self.forward()

    def forward(self):
        time.sleep(0.01)
        return "logits"


def test_inner_calls_are_subtracted_from_outer_ones():
    engine, stopwatch = Engine(), Stopwatch()
    with stopwatch.timing([(engine, "step", "step"), (engine, "forward", "forward")]):
        started = time.perf_counter()
        engine.step()
        elapsed = time.perf_counter() - started
    assert set(stopwatch.seconds) == {("step",), ("step", "forward")}
    assert 0.04 <= sum(stopwatch.seconds.values()) <= elapsed
    assert stopwatch.seconds["step",] >= 0.02
    assert stopwatch.seconds["step", "forward"] >= 0.02


def test_the_same_method_has_a_path_for_each_caller():
    engine, stopwatch = Engine(), Stopwatch()
    with stopwatch.timing([(engine, "step", "step"), (engine, "forward", "forward")]):
        engine.step()
        assert engine.forward() == "logits"
    assert ("forward",) in stopwatch.seconds


def test_take_resets_the_stopwatch():
    engine, stopwatch = Engine(), Stopwatch()
    with stopwatch.timing([(engine, "forward", "forward")]):
        engine.forward()
        assert list(stopwatch.take()) == [("forward",)]
        assert stopwatch.take() == {}


def test_the_original_methods_are_restored():
    engine = Engine()
    with Stopwatch().timing([(engine, "step", "step")]):
        assert "step" in vars(engine)
    assert vars(engine) == {}
