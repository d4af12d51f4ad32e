"""What one engine step did, in the numbers that its worker sends to `/metrics`."""

from __future__ import annotations

import time
from collections.abc import Callable

NUM_RESUMED_TOKENS = "num_resumed_tokens"
NUM_FRESH_TOKENS = "num_fresh_tokens"
VERIFY_TIME = "verify_time_seconds"
DRAFT_TIME = "draft_time_seconds"


class StepStats:
    """Counts and clocks one step while it runs. Times are the worker's own, as a clock shows them.

    A step is a forward of the target, sampling, and then a propose step if there is one. Whoever
    says that a phase ended says so when its results are on the host.
    """

    def __init__(
        self, num_scheduled_tokens: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.num_resumed_tokens = 0
        self._num_scheduled_tokens = num_scheduled_tokens
        self._clock = clock
        self._phase_started = clock()
        self._seconds: dict[str, float] = {}

    def sampled(self, num_verified: int) -> None:
        """Hear that the step's tokens are sampled; `num_verified` drafts were verified for them."""
        seconds = self._end_phase()
        if num_verified:
            self._seconds[VERIFY_TIME] = seconds

    def drafted(self) -> None:
        """Hear that the propose step has its drafts."""
        self._seconds[DRAFT_TIME] = self._end_phase()

    def _end_phase(self) -> float:
        started, self._phase_started = self._phase_started, self._clock()
        return self._phase_started - started

    def as_dict(self) -> dict[str, float]:
        """The numbers by name, plain enough for any wire; a time is there where it was spent.

        Fresh tokens are all that the step ran its early layers on, prompts included.
        """
        return {
            NUM_RESUMED_TOKENS: self.num_resumed_tokens,
            NUM_FRESH_TOKENS: self._num_scheduled_tokens - self.num_resumed_tokens,
            **self._seconds,
        }
