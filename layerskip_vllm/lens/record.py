"""Figures of one lens run, the source of tables, plots and the JSON file.

The JSON file holds a `LensRecord`, one key per field; later versions only add keys. Unknown values
are null: speeds with `--no-speed`, statistics without positions.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

FORMAT = 1


@dataclass(frozen=True)
class ExitRecord:
    """Figures of one exit: the first E layers, the shared norm and the LM head."""

    exit_layer: int
    agreement_text: float | None  # share of positions with the last layer's top-1, [0, 1]
    agreement_continuation: float | None  # same, where vLLM would draft
    perplexity: float | None  # of the prompts
    num_parameters: int  # of the model cut at E; a tied head counts once
    num_bytes: int  # of these parameters, in the checkpoint's dtype
    tokens_per_s: float | None  # measured, batch 1


@dataclass(frozen=True)
class PairRecord:
    """vLLM's counts of greedy self-speculation with one (E, K), replayed."""

    exit_layer: int
    num_speculative_tokens: int
    num_drafts: int
    num_drafted: int
    num_accepted: int
    acceptance_rate: float | None
    mean_acceptance_length: float | None
    ideal_speedup: float | None  # if only decoder layers cost
    timed_speedup: float | None  # with measured costs of exits and full model


@dataclass(frozen=True)
class WindowRecord:
    """The last tokens of the first prompt and its continuation."""

    tokens: list[str]  # input at each position
    is_prompt: list[bool]  # per position; false: generated
    top1: list[list[str]]  # [num_layers][num_positions], prediction of exit E = row + 1
    top1_probs: list[list[float]]  # [num_layers][num_positions]
    agrees: list[list[bool]]  # [num_layers][num_positions], same as the last layer


@dataclass(frozen=True)
class LensRecord:
    """All figures of one model."""

    label: str  # name in plots
    model: str
    dtype: str  # of the computation
    checkpoint_dtype: str
    device: str
    num_threads: int
    versions: dict[str, str]
    num_layers: int
    num_prompts: int
    num_text_positions: int
    num_continuation_positions: int
    max_tokens: int
    mean_settle_layer_text: float | None
    mean_settle_layer_continuation: float | None
    exits: list[ExitRecord]  # num_layers entries; the last is the whole model
    acceptance: list[PairRecord]
    best: PairRecord | None  # highest ideal speed-up
    best_timed: PairRecord | None  # highest timed speed-up
    window: WindowRecord
    format: int = FORMAT

    def pair(self, exit_layer: int, num_speculative_tokens: int) -> PairRecord:
        """Return the entry of `acceptance` for (E, K), which must exist."""
        return next(
            pair
            for pair in self.acceptance
            if (pair.exit_layer, pair.num_speculative_tokens)
            == (exit_layer, num_speculative_tokens)
        )

    @property
    def exit_layers(self) -> list[int]:
        """All E in `acceptance`, ascending."""
        return sorted({pair.exit_layer for pair in self.acceptance})

    @property
    def draft_lengths(self) -> list[int]:
        """All K in `acceptance`, ascending."""
        return sorted({pair.num_speculative_tokens for pair in self.acceptance})

    def save(self, path: Path) -> None:
        """Write the JSON file."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> LensRecord:
        """Read a JSON file that `save` wrote.

        Raises:
            ValueError: The file is not a record, or has another format.
            OSError: The file cannot be read.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not JSON: {error}") from error
        found = values.get("format") if isinstance(values, dict) else None
        if found != FORMAT:
            raise ValueError(
                f"{path}: format={found!r} must be {FORMAT}: expected a file "
                "of `layerskip-vllm lens --json`"
            )
        try:
            best, best_timed = values.pop("best"), values.pop("best_timed")
            return cls(
                exits=[ExitRecord(**entry) for entry in values.pop("exits")],
                acceptance=[PairRecord(**entry) for entry in values.pop("acceptance")],
                best=PairRecord(**best) if best else None,
                best_timed=PairRecord(**best_timed) if best_timed else None,
                window=WindowRecord(**values.pop("window")),
                **values,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: not a whole record of the lens: {error}") from error
