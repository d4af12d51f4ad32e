"""Output tokens per second of one system at several batch sizes, with one engine."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu.engines import ON_A_GPU, StartedEngine
from benchmarks.gpu.models import MODELS
from benchmarks.gpu.records import Speed
from benchmarks.models import PreparedModel
from benchmarks.systems import table
from layerskip_vllm.measure.decoding import DraftCounts

if TYPE_CHECKING:
    from benchmarks.gpu.records import Emit
    from layerskip_vllm.measure.decoding import Decoding
    from layerskip_vllm.measure.engine import VllmEngine

NUM_SPECULATIVE_TOKENS = 4
PLAIN = "plain"
"""The reference column."""


@dataclass(frozen=True)
class Column:
    """A column of the speed table: a system, and the model runner that it runs on.

    Attributes:
        name: Of the column on the command line and in records.
        system: From `benchmarks.systems.table`.
        runner: "V1", "V2", or None for vLLM's choice.
        title: In the report.
    """

    name: str
    system: str
    runner: str | None
    title: str


COLUMNS = {
    column.name: column
    for column in (
        Column(PLAIN, "plain", None, "plain, vLLM's defaults"),
        Column("plain-v1", "plain", "V1", "plain, V1"),
        Column("draft_model", "draft_model", None, "`draft_model`, E layers"),
        Column("ngram", "ngram", None, "`ngram`"),
        Column("self-v2", "self", "V2", "`self:E` V2"),
        Column("self-v2-vocab", "self-draft-vocab", "V2", "`self:E` V2, draft vocabulary"),
        Column("self-v2-default", "self-default", "V2", "`self:E` V2, default settings"),
        Column("self-v2-auto", "self-auto", "V2", "`self:auto` V2"),
        Column("self-v1", "self", "V1", "`self:E` V1"),
    )
}
"""All columns, in the report's order."""


@dataclass(frozen=True)
class SpeedTask:
    """Measure one column of the table of one model.

    Attributes:
        job: Name of the job.
        prepared: The model's PREPARED file.
        column: Name from COLUMNS.
        batch_sizes: Concurrent requests.
        num_repeats: Decodings that count, after one that does not.
        looks_inside: Whether to count launches and time phases afterwards.
        on_gpu: Whether to pass the arguments that only a GPU's engine takes.
        is_eager: Without compilation and CUDA graphs.
    """

    job: str
    prepared: str
    column: str
    batch_sizes: list[int]
    num_repeats: int = 3
    looks_inside: bool = False
    on_gpu: bool = True
    is_eager: bool = False

    def run(self, emit: Emit) -> None:
        """Emit a record per batch size, then the launches and phases."""
        from benchmarks.gpu.graphs import look_inside

        model = PreparedModel(**json.loads(Path(self.prepared).read_text()))
        arguments = engine_arguments(
            model, COLUMNS[self.column].system, max(self.batch_sizes), self.on_gpu, self.is_eager
        )
        started = StartedEngine(self.job, self.column, arguments)
        emit(started.start)
        for batch_size in self.batch_sizes:
            prompts = model.prompts[:batch_size]
            emit(self._measure(started.engine, model, prompts))
        if self.looks_inside:
            look_inside(started.engine, model.name, self.column, model.prompts, emit)
        started.close()

    def _measure(self, engine: VllmEngine, model: PreparedModel, prompts: list[list[int]]) -> Speed:
        # The first decoding compiles the kernels that this batch size needs; it does not count.
        decodings = [engine.decode(prompts, model.max_tokens) for _ in range(1 + self.num_repeats)]
        return speed(model.name, self.column, decodings[1:])


def engine_arguments(
    model: PreparedModel, system: str, max_num_seqs: int, on_gpu: bool, is_eager: bool
) -> dict[str, object]:
    """Arguments of `vllm.LLM` for a system of `benchmarks.systems.table`."""
    systems = table(model, NUM_SPECULATIVE_TOKENS, is_eager, max_num_seqs=max_num_seqs)
    return dict(systems[system].arguments) | (ON_A_GPU if on_gpu else {})


def speed(model: str, column: str, decodings: list[Decoding]) -> Speed:
    """The record of several decodings of the same batch."""
    tokens_per_s = [decoding.tokens_per_s for decoding in decodings]
    drafts = sum((decoding.drafts for decoding in decodings), DraftCounts())
    return Speed(
        model=model,
        system=column,
        batch_size=decodings[0].batch_size,
        num_repeats=len(decodings),
        tokens_per_s=statistics.median(tokens_per_s),
        min_tokens_per_s=min(tokens_per_s),
        max_tokens_per_s=max(tokens_per_s),
        tokens_per_step=statistics.fmean(decoding.tokens_per_step for decoding in decodings),
        acceptance_rate=drafts.acceptance_rate,
        acceptance_per_token=drafts.acceptance_per_token,
        mean_acceptance_length=drafts.mean_acceptance_length,
    )


def columns_of(model: str) -> list[Column]:
    """The columns that a model can fill: a small vocabulary needs no smaller one for drafts."""
    has_vocab = MODELS[model].draft_vocab_size is not None
    return [c for c in COLUMNS.values() if has_vocab or c.system != "self-draft-vocab"]
