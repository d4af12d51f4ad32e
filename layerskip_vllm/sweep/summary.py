"""Sums up a sweep's measurements: speed-ups, the best pairs, what a checkpoint should know."""

from __future__ import annotations

import shlex
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from layerskip_vllm.checkpoint.settings import CheckpointSettings, distinct_exits
from layerskip_vllm.config import OPTIONS_KEY, SELF_PREFIX
from layerskip_vllm.measure.decoding import DraftCounts
from layerskip_vllm.measure.spread import Spread
from layerskip_vllm.sweep.plan import PLAIN, EngineSetup
from layerskip_vllm.sweep.results import Measurement


@dataclass(frozen=True)
class Pair:
    """E with its draft vocabulary, and K."""

    setup: EngineSetup
    num_speculative_tokens: int

    @property
    def name(self) -> str:
        """As on the screen."""
        return f"{self.setup.name}, K={self.num_speculative_tokens}"

    @property
    def order(self) -> tuple[int, int, int]:
        """Smaller is cheaper, which decides between equals."""
        vocab_size = self.setup.draft_vocab_size
        return self.setup.exit_layer or 0, self.num_speculative_tokens, vocab_size or 0


@dataclass(frozen=True)
class Cell:
    """A pair at one batch size, over all rounds."""

    speedup: Spread
    tokens_per_s: Spread
    drafts: DraftCounts
    num_rounds: int


class Summary:
    """The measurements by pair and batch size; a batch size that lacks a pair says so with None."""

    def __init__(self, measurements: Iterable[Measurement]) -> None:
        """Group the measurements."""
        self.devices: set[str] = set()
        grouped: dict[tuple[Pair, int], list[Measurement]] = defaultdict(list)
        for entry in measurements:
            pair = Pair(entry.turn.setup, entry.turn.num_speculative_tokens)
            grouped[pair, entry.turn.batch_size].append(entry)
            self.devices.add(entry.device)
        self._cells = {key: _cell(entries) for key, entries in grouped.items()}

    @cached_property
    def pairs(self) -> list[Pair]:
        """All pairs, by E, K and vocabulary."""
        found = {pair for pair, _ in self._cells if pair.setup != PLAIN}
        return sorted(found, key=lambda pair: pair.order)

    @cached_property
    def exit_layers(self) -> list[int]:
        """Every E."""
        return sorted({pair.setup.exit_layer for pair in self.pairs if pair.setup.exit_layer})

    @cached_property
    def draft_lengths(self) -> list[int]:
        """Every K."""
        return sorted({pair.num_speculative_tokens for pair in self.pairs})

    @cached_property
    def draft_vocab_sizes(self) -> list[int | None]:
        """Every size of the draft vocabulary, the whole vocabulary first."""
        sizes = {pair.setup.draft_vocab_size for pair in self.pairs}
        return sorted(sizes, key=lambda size: (size is not None, size or 0))

    @cached_property
    def batch_sizes(self) -> list[int]:
        """Every batch size."""
        return sorted({batch_size for _, batch_size in self._cells})

    def cell(self, pair: Pair, batch_size: int) -> Cell | None:
        """The figures of a pair; None: not measured."""
        return self._cells.get((pair, batch_size))

    def plain(self, batch_size: int) -> Cell:
        """The figures of plain vLLM."""
        return self._cells[Pair(PLAIN, 0), batch_size]

    def best(self, batch_size: int) -> Pair | None:
        """The fastest pair at a batch size; None: no pair was measured there."""
        return self._fastest([batch_size])

    @cached_property
    def best_overall(self) -> Pair | None:
        """The pair with the highest mean speed-up over the batch sizes (geometric mean)."""
        return self._fastest(self.batch_sizes)

    def mean_speedup(self, pair: Pair, batch_sizes: Sequence[int] | None = None) -> float | None:
        """Geometric mean of a pair's speed-ups; None where one was not measured."""
        cells = [self.cell(pair, size) for size in batch_sizes or self.batch_sizes]
        speedups = [cell.speedup.median for cell in cells if cell is not None]
        return statistics.geometric_mean(speedups) if len(speedups) == len(cells) else None

    def settings(self, num_layers: int) -> CheckpointSettings | None:
        """What a checkpoint of L layers should know; None where no pair beats plain vLLM."""
        best = self.best_overall
        if best is None or (self.mean_speedup(best) or 0) <= 1:
            return None
        vocab_size = best.setup.draft_vocab_size
        ranked = self._ranked(
            [pair for pair in self.pairs if pair.setup.draft_vocab_size == vocab_size],
            self.batch_sizes,
        )
        exits = distinct_exits((pair.setup.exit_layer or 0 for pair in ranked), num_layers)
        rates = [self._acceptance(EngineSetup(e, vocab_size)) for e in exits]
        return CheckpointSettings(
            exit_layers=exits,
            num_speculative_tokens=best.num_speculative_tokens,
            acceptance_rate=None if None in rates else tuple(round(r or 0, 4) for r in rates),
            draft_vocab_size=vocab_size,
        )

    def _acceptance(self, setup: EngineSetup) -> float | None:
        """Accepted / drafted at K = 1, from all K."""
        found = (cell for (pair, _), cell in self._cells.items() if pair.setup == setup)
        return sum((cell.drafts for cell in found), DraftCounts()).acceptance_per_token

    def _fastest(self, batch_sizes: Sequence[int]) -> Pair | None:
        return next(iter(self._ranked(self.pairs, batch_sizes)), None)

    def _ranked(self, pairs: Sequence[Pair], batch_sizes: Sequence[int]) -> list[Pair]:
        """The pairs that were measured at all these batch sizes, the fastest first."""
        speedups = {pair: self.mean_speedup(pair, batch_sizes) for pair in pairs}
        measured = [pair for pair in pairs if speedups[pair] is not None]
        return sorted(measured, key=lambda pair: -(speedups[pair] or 0))


def serve_command(
    model: str, pair: Pair | None, flags: Sequence[str] = (), vocab_counts: str | None = None
) -> str:
    """The command line that serves a pair.

    Args:
        model: Directory or name on the hub.
        pair: None is plain vLLM.
        flags: vLLM's flags of the sweep.
        vocab_counts: File of token counts.
    """
    words = ["vllm", "serve", model, *flags]
    if pair is not None:
        words += ["--speculative-model", f"{SELF_PREFIX}{pair.setup.exit_layer}"]
        words += ["--num-speculative-tokens", str(pair.num_speculative_tokens)]
        if pair.setup.draft_vocab_size is not None:
            option = f"--additional-config.{OPTIONS_KEY}."
            words += [f"{option}draft_vocab_size", str(pair.setup.draft_vocab_size)]
            if vocab_counts is not None:
                words += [f"{option}draft_vocab_counts", vocab_counts]
    return shlex.join(words)


def _cell(entries: Sequence[Measurement]) -> Cell:
    return Cell(
        speedup=Spread.of(entry.speedup for entry in entries),
        tokens_per_s=Spread.of(entry.tokens_per_s for entry in entries),
        drafts=sum((entry.drafts for entry in entries), DraftCounts()),
        num_rounds=len({entry.turn.round_index for entry in entries}),
    )
