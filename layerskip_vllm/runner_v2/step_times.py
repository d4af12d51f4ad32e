"""How long the phases of a step take, measured without waiting for the device.

On a GPU the host is ahead of the device. A step's times are read once the device has passed the
step's end, and travel with the output of a later step.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Protocol, Self

import torch

from layerskip_vllm.telemetry import DRAFT_TIME, VERIFY_TIME


class Moment(Protocol):
    """A point in the work that the host gives to the device; its construction marks it."""

    def has_passed(self) -> bool:
        """Whether the device has got there."""

    def seconds_since(self, earlier: Self) -> float:
        """Seconds that the device took from there to here."""


class DeviceMoment:
    """A moment in the current CUDA stream."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event(enable_timing=True)
        self._event.record()

    def has_passed(self) -> bool:
        """Ask the event; this does not wait."""
        return self._event.query()

    def seconds_since(self, earlier: Self) -> float:
        """Compare two events that have passed."""
        return earlier._event.elapsed_time(self._event) / 1000


class HostMoment:
    """A moment on a CPU, which has finished all work that it was given."""

    def __init__(self) -> None:
        self._time = time.perf_counter()

    def has_passed(self) -> bool:
        """Be in the past, always."""
        return True

    def seconds_since(self, earlier: Self) -> float:
        """Compare two readings of the clock."""
        return self._time - earlier._time


def moments_of(device: torch.device) -> type[DeviceMoment | HostMoment]:
    """What marks a moment in a device's work."""
    return DeviceMoment if device.type == "cuda" else HostMoment


@dataclass
class StepMoments:
    """The moments of one step; a phase that it does not have is None."""

    started: Moment
    sampled: Moment | None = None
    ended: Moment | None = None
    verifies: bool = False
    drafts: bool = False

    def seconds(self) -> dict[str, float]:
        """Times by name, of the phases that there were."""
        seconds = {}
        if self.sampled is not None and self.verifies:
            seconds[VERIFY_TIME] = self.sampled.seconds_since(self.started)
        if self.sampled is not None and self.ended is not None and self.drafts:
            seconds[DRAFT_TIME] = self.ended.seconds_since(self.sampled)
        return seconds


class StepTimes:
    """Marks the moments of a step while it is launched, and returns times of finished steps."""

    def __init__(self, device: torch.device) -> None:
        self._mark = moments_of(device)
        self._step: StepMoments | None = None
        self._launched: deque[StepMoments] = deque()

    def start(self) -> None:
        """Mark the start of a step."""
        self._step = StepMoments(self._mark())

    def sampled(self, num_verified: int) -> None:
        """Mark that the step's tokens are sampled; it verified `num_verified` drafts for them."""
        if self._step is not None:
            self._step.sampled = self._mark()
            self._step.verifies = num_verified > 0

    def end(self, num_drafts: int) -> None:
        """Mark the end of a step that has drafted `num_drafts` tokens a request."""
        if self._step is not None:
            self._step.ended = self._mark()
            self._step.drafts = num_drafts > 0
            self._launched.append(self._step)
            self._step = None

    def take(self) -> dict[str, float]:
        """Times of the oldest step that no call has returned, if the device has finished it.

        One step a call is enough: vLLM launches no more than two before it reads an output.
        """
        if not self._launched:
            return {}
        ended = self._launched[0].ended
        if ended is None or not ended.has_passed():
            return {}
        return self._launched.popleft().seconds()
