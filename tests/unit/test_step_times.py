"""Times of a step's phases are read after the device has passed them, never by waiting."""

import itertools

import torch

from layerskip_vllm.runner_v2.step_times import StepTimes
from layerskip_vllm.telemetry import DRAFT_TIME, VERIFY_TIME


class Device:
    """A device that is behind the host: it passes moments in order, a second apart."""

    def __init__(self) -> None:
        self.num_passed = 0
        self._numbers = itertools.count(1)

    def moment(self):
        device, number = self, next(self._numbers)

        class Moment:
            def __init__(self) -> None:
                self.number = number

            def has_passed(self) -> bool:
                return device.num_passed >= self.number

            def seconds_since(self, earlier) -> float:
                assert self.has_passed()
                return float(self.number - earlier.number)

        return Moment()


def run_step(times: StepTimes, num_verified: int, num_drafts: int) -> None:
    times.start()
    times.sampled(num_verified)
    times.end(num_drafts)


def test_times_come_when_the_device_has_finished_the_step():
    device, times = Device(), StepTimes(torch.device("cpu"))
    times._mark = device.moment
    run_step(times, num_verified=3, num_drafts=2)
    assert times.take() == {}
    device.num_passed = 2  # sampled, and still drafting
    assert times.take() == {}
    run_step(times, num_verified=0, num_drafts=2)
    device.num_passed = 6
    assert times.take() == {VERIFY_TIME: 1.0, DRAFT_TIME: 1.0}
    assert times.take() == {DRAFT_TIME: 1.0}
    assert times.take() == {}


def test_a_step_without_a_phase_has_no_time_for_it():
    times = StepTimes(torch.device("cpu"))
    run_step(times, num_verified=0, num_drafts=0)
    assert times.take() == {}
    run_step(times, num_verified=1, num_drafts=0)
    assert times.take().keys() == {VERIFY_TIME}


def test_a_dummy_run_is_no_step():
    times = StepTimes(torch.device("cpu"))
    times.sampled(0)
    times.end(2)
    assert times.take() == {}
