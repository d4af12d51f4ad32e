"""The child process of one system: it runs commands from a socket until the parent closes it.

`benchmarks.child` starts it, with a log file as its standard output.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection

from benchmarks.auto_vs_fixed.choices import counted
from benchmarks.forward_time import ForwardTime, measure_forward_times
from benchmarks.load import Arrival, LoadFigures, measure_load
from benchmarks.memory import Memory, reset_peak
from benchmarks.messages import Failure, Ready
from benchmarks.step_breakdown import StepBreakdown, measure_step_breakdown
from layerskip_vllm.measure.decoding import Decoding
from layerskip_vllm.scheduling.request_options import NUM_DRAFTS_ARG


class TransformersWorker:
    """Runs a transformers system."""

    def __init__(self, arguments: Mapping[str, object]) -> None:
        from benchmarks.transformers_engine import TransformersEngine

        self.engine = TransformersEngine(**arguments)  # type: ignore[arg-type]

    kv_cache_tokens = None

    def decode(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> Decoding:
        """Decode a batch."""
        return self.engine.decode(prompts, max_tokens)

    def memory(self) -> Memory:
        """Memory since the system was ready."""
        return Memory.read()


class VllmWorker:
    """Runs a vLLM system."""

    def __init__(self, arguments: Mapping[str, object]) -> None:
        from layerskip_vllm.measure.engine import VllmEngine

        self.engine = VllmEngine(arguments)
        self.kv_cache_tokens = self.engine.kv_cache_tokens()

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        temperature: float = 0,
        num_drafts: int | None = None,
    ) -> Decoding:
        """Decode a batch, with at most `num_drafts` drafts a step where given."""
        limit = None if num_drafts is None else {NUM_DRAFTS_ARG: num_drafts}
        return self.engine.decode(prompts, max_tokens, temperature, extra_args=limit)

    def decode_choosing(
        self, prompts: Sequence[Sequence[int]], max_tokens: int
    ) -> tuple[Decoding, Counter[str]]:
        """Decode a batch, and count which (E, K) `self:auto` chose."""
        scheduler = self.engine.scheduler
        labels = scheduler.vllm_config.speculative_config.layerskip.exit_labels
        with counted(scheduler.policy, [layer for layer, _ in labels]) as chosen:
            return self.engine.decode(prompts, max_tokens), chosen

    def forward_times(
        self, prompts: Sequence[Sequence[int]], num_steps: int, row_counts: Sequence[int]
    ) -> dict[int, list[ForwardTime]]:
        """Measure t(M): M -> its timed steps."""
        return measure_forward_times(self.engine, prompts, num_steps, row_counts)

    def step_breakdown(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> StepBreakdown:
        """Measure the time of a step, by part."""
        return measure_step_breakdown(self.engine, prompts, max_tokens)

    def load(self, load: Sequence[Arrival]) -> LoadFigures:
        """Serve a mixed load."""
        return measure_load(self.engine, load)

    def memory(self) -> Memory:
        """Memory since the system was ready."""
        return Memory.read()


WORKERS: dict[str, Callable[[Mapping[str, object]], TransformersWorker | VllmWorker]] = {
    "vllm": VllmWorker,
    "transformers": TransformersWorker,
}


def main() -> None:
    """Start the system that the first message names, then run one command after another."""
    logging.basicConfig()
    connection = Connection(int(sys.argv[1]))
    try:
        kind, arguments = connection.recv()
        started = time.perf_counter()
        worker = WORKERS[kind](arguments)
        ready = Ready(time.perf_counter() - started, Memory.read(), worker.kv_cache_tokens)
        reset_peak()
        connection.send(ready)
    except Exception:
        connection.send(Failure(traceback.format_exc()))
        return
    while (command := connection.recv()) is not None:
        method, arguments = command
        try:
            connection.send(getattr(worker, method)(**arguments))
        except Exception:
            connection.send(Failure(traceback.format_exc()))


if __name__ == "__main__":
    main()
