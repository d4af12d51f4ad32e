"""The results of one model's run as plain numbers, for tables, plots and the JSON file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environment import Environment
from benchmarks.forward_time import ForwardTime
from benchmarks.ideal import IdealCycle
from benchmarks.rounds import Start
from benchmarks.step_breakdown import StepBreakdown
from layerskip_vllm.measure.spread import Spread


@dataclass(frozen=True)
class BatchFigures:
    """One system at one batch size, over all rounds.

    Attributes:
        batch_size: Concurrent requests.
        tokens_per_s: Output tokens/s of decoding, all requests together, one value per turn.
        speedup: Over plain, one ratio per turn.
        tokens_per_step: Per request, over the full steps, the only timed ones.
        time_to_first_token_ms: Per request; one median per turn.
        time_per_output_token_p50_ms: Median over all requests.
        time_per_output_token_p99_ms: 99th percentile over all requests; with few requests, the
            slowest one.
        acceptance_rate: Accepted / drafted; null if nothing was drafted.
        mean_acceptance_length: 1 + accepted / drafts; null if nothing was drafted.
        acceptance_per_token: Accepted / (accepted + first rejections); null as above.
        num_texts: Outputs of all rounds.
        num_texts_equal: Outputs that equal plain's, token by token.
    """

    batch_size: int
    tokens_per_s: Spread
    speedup: Spread
    tokens_per_step: float
    time_to_first_token_ms: Spread
    time_per_output_token_p50_ms: float
    time_per_output_token_p99_ms: float
    acceptance_rate: float | None
    mean_acceptance_length: float | None
    acceptance_per_token: float | None
    num_texts: int
    num_texts_equal: int


@dataclass(frozen=True)
class SystemResult:
    """One system.

    Attributes:
        name: As in the table of systems.
        arguments: Its engine's arguments.
        starts: All its starts.
        peak_rss_bytes: Peak resident size while it served.
        anonymous_bytes: Resident at the end and backed by no file.
        batches: One entry per batch size.
        step_breakdowns: One entry per batch size; empty if not measured.
    """

    name: str
    arguments: dict[str, object]
    starts: list[Start]
    peak_rss_bytes: int
    anonymous_bytes: int
    batches: list[BatchFigures]
    step_breakdowns: list[StepBreakdown]

    def at(self, batch_size: int) -> BatchFigures | None:
        """Figures at a batch size; None if not measured."""
        return next((batch for batch in self.batches if batch.batch_size == batch_size), None)

    @property
    def kv_cache_tokens(self) -> int | None:
        """Tokens that fit in the KV cache's budget."""
        return self.starts[0].kv_cache_tokens


@dataclass(frozen=True)
class IdealFigures:
    """The row-aware ideal at one batch size.

    Attributes:
        batch_size: B.
        cycle: Times of its parts.
        tokens_per_cycle: Measured on `self`.
        speedup: Ideal speed-up over plain at that length.
    """

    batch_size: int
    cycle: IdealCycle
    tokens_per_cycle: float
    speedup: float


@dataclass(frozen=True)
class ModelResult:
    """All systems on one model."""

    name: str
    description: str
    dtype: str
    exit_layer: int
    num_layers: int
    num_speculative_tokens: int
    weight_bytes: int
    kv_cache_bytes: int
    calibration: dict[str, object] | None
    num_rounds: int
    max_tokens: int
    temperature: float  # above 0 each request had a seed
    environment: Environment
    groups: list[list[str]]  # systems that ran side by side
    systems: list[SystemResult]
    forward_times: dict[int, ForwardTime]  # M -> medians; empty if not measured
    ideals: list[IdealFigures]

    def system(self, name: str) -> SystemResult | None:
        """A system's results; None if not measured."""
        return next((system for system in self.systems if system.name == name), None)

    @property
    def batch_sizes(self) -> list[int]:
        """Every batch size, ascending."""
        return sorted({batch.batch_size for system in self.systems for batch in system.batches})

    @property
    def is_exact(self) -> bool:
        """Whether every text of every system equals plain's."""
        return all(
            batch.num_texts_equal == batch.num_texts
            for system in self.systems
            for batch in system.batches
        )


def save(results: Sequence[ModelResult], path: Path) -> None:
    """Write the JSON file, with one key per field declared here."""
    text = json.dumps([dataclasses.asdict(result) for result in results], indent=1)
    path.write_text(text + "\n", encoding="utf-8")
