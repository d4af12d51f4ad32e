"""t(M) on the GPU: plain vLLM's step for M decoding requests, its LM head apart."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu.engines import StartedEngine
from benchmarks.gpu.records import Forward
from benchmarks.gpu.speed import NUM_SPECULATIVE_TOKENS, PLAIN, engine_arguments
from benchmarks.models import PreparedModel

if TYPE_CHECKING:
    from benchmarks.gpu.records import Emit
    from layerskip_vllm.measure.engine import VllmEngine

MAX_TOKENS = 32
"""Output of each request: about 30 steps count."""
PROMPT_LEN = 8
"""Short, since no prefill is timed."""
NUM_HEADS_TIMED = 20


@dataclass(frozen=True)
class ForwardTask:
    """Time plain vLLM's steps at the batch sizes of the speed table and of their verification.

    Attributes:
        job: Name of the job.
        prepared: The model's PREPARED file.
        batch_sizes: Of the speed table.
        on_gpu: Whether to pass the arguments that only a GPU's engine takes.
        is_eager: Without compilation and CUDA graphs.
    """

    job: str
    prepared: str
    batch_sizes: list[int]
    on_gpu: bool = True
    is_eager: bool = False

    def row_counts(self) -> list[int]:
        """Each M: a request has one row in plain decoding, and K + 1 where it is verified."""
        verified = [size * (NUM_SPECULATIVE_TOKENS + 1) for size in self.batch_sizes]
        return sorted({*self.batch_sizes, *verified})

    def run(self, emit: Emit) -> None:
        """Emit a record per M."""
        model = PreparedModel(**json.loads(Path(self.prepared).read_text()))
        counts = self.row_counts()
        arguments = engine_arguments(model, PLAIN, max(counts), self.on_gpu, self.is_eager)
        started = StartedEngine(self.job, PLAIN, arguments)
        emit(started.start)
        for num_rows in counts:
            emit(_measure(started.engine, model, num_rows))
        started.close()


def _measure(engine: VllmEngine, model: PreparedModel, num_rows: int) -> Forward:
    prompts = [ids[:PROMPT_LEN] for ids in islice(cycle(model.prompts), num_rows)]
    engine.decode(prompts, 4)  # compiles the kernels that this many rows need
    decoding = engine.decode(prompts, MAX_TOKENS)
    step_s = statistics.median(decoding.step_s[step] for step in decoding.full_steps())
    return Forward(model.name, num_rows, 1000 * step_s, 1000 * _head_s(engine, num_rows))


def _head_s(engine: VllmEngine, num_rows: int) -> float:
    """Seconds of the LM head alone; PyTorch's timer waits for the device."""
    import torch
    from torch.utils.benchmark import Timer

    config = engine.runner.vllm_config.model_config
    states = torch.zeros(
        num_rows, config.get_hidden_size(), dtype=config.dtype, device=engine.runner.device
    )
    with torch.inference_mode():
        names = {"head": engine.model.compute_logits, "states": states}
        timer = Timer("head(states)", globals=names)
        timer.timeit(2)
        return timer.timeit(NUM_HEADS_TIMED).median
