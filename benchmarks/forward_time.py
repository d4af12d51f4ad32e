"""t(M): the time of plain vLLM's forward for M decoding rows, layers and LM head separately."""

from __future__ import annotations

import statistics
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.stopwatch import Stopwatch

if TYPE_CHECKING:
    from layerskip_vllm.measure.engine import VllmEngine

ROW_COUNTS = (1, 2, 4, 5, 8, 10, 16, 20, 32, 40, 64, 80, 128)
"""Batch sizes from 1 to 16, their verify batches of K + 1 rows, and counts in between."""

NUM_UNTIMED_STEPS = 1
"""Untimed steps at each new M."""

FORWARD, HEAD = ("forward",), ("head",)


@dataclass(frozen=True)
class ForwardTime:
    """Seconds of one forward.

    Attributes:
        layers_s: Embedding, decoder layers and final norm.
        head_s: LM head.
    """

    layers_s: float
    head_s: float

    @property
    def total_s(self) -> float:
        """The whole forward."""
        return self.layers_s + self.head_s


def measure_forward_times(
    engine: VllmEngine, prompts: Sequence[Sequence[int]], num_steps: int, row_counts: Iterable[int]
) -> dict[int, list[ForwardTime]]:
    """Start with the most rows and abort requests on the way down, so that one prefill is enough.

    Args:
        engine: Plain vLLM.
        prompts: At least as many as the most rows; short ones keep the untimed prefill cheap.
        num_steps: Timed steps of each M.
        row_counts: Every M.

    Returns:
        M -> its timed steps.
    """
    descending = sorted(row_counts, reverse=True)
    steps_per_count = NUM_UNTIMED_STEPS + num_steps
    max_tokens = 2 + steps_per_count * len(descending)  # no request may finish before its abort
    req_ids = engine.add(prompts[: descending[0]], max_tokens)
    stopwatch = Stopwatch()
    times: dict[int, list[ForwardTime]] = {}
    methods = (
        (engine.runner, "_model_forward", "forward"),
        (engine.model, "compute_logits", "head"),
    )
    with stopwatch.timing(methods):
        engine.step_until_all_decode(req_ids)
        for num_rows in descending:
            engine.abort(req_ids[num_rows:])
            del req_ids[num_rows:]
            for _ in range(NUM_UNTIMED_STEPS):
                engine.step()
            stopwatch.take()
            times[num_rows] = []
            for _ in range(num_steps):
                engine.step()
                seconds = stopwatch.take()
                times[num_rows].append(ForwardTime(seconds[FORWARD], seconds[HEAD]))
    engine.abort(req_ids)
    return times


class ForwardTimes:
    """t(M) for any M up to the largest measured one."""

    def __init__(self, measured: Mapping[int, ForwardTime]) -> None:
        """Keep the measured times.

        Args:
            measured: M -> its time, usually a median.
        """
        self.measured = dict(sorted(measured.items()))
        self._rows = list(self.measured)

    @classmethod
    def median(cls, rounds: Iterable[Mapping[int, Sequence[ForwardTime]]]) -> ForwardTimes:
        """Medians over all steps of all rounds."""
        steps: dict[int, list[ForwardTime]] = {}
        for times in rounds:
            for num_rows, timed in times.items():
                steps.setdefault(num_rows, []).extend(timed)
        return cls(
            {
                num_rows: ForwardTime(
                    statistics.median(step.layers_s for step in timed),
                    statistics.median(step.head_s for step in timed),
                )
                for num_rows, timed in steps.items()
            }
        )

    def at(self, num_rows: int) -> ForwardTime:
        """t(M), by linear interpolation between measured neighbours.

        Raises:
            ValueError: M is outside the measured range.
        """
        if num_rows in self.measured:
            return self.measured[num_rows]
        above = bisect_left(self._rows, num_rows)
        if not 0 < above < len(self._rows):
            raise ValueError(
                f"{num_rows} rows must be in [{self._rows[0]}, {self._rows[-1]}], as measured"
            )
        low, high = self._rows[above - 1], self._rows[above]
        weight = (num_rows - low) / (high - low)
        a, b = self.measured[low], self.measured[high]
        return ForwardTime(
            a.layers_s + weight * (b.layers_s - a.layers_s),
            a.head_s + weight * (b.head_s - a.head_s),
        )
