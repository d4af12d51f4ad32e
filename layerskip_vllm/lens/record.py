"""What one run of the lens found, as plain numbers: tables, plots and the JSON file show this.

The JSON file holds `LensRecord` as it is declared here, one key a field; keys are only ever added.
What is not known is null: speeds after `--no-speed`, statistics over no positions at all.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

FORMAT = 1


@dataclass(frozen=True)
class ExitRecord:
    """One exit: the first E layers, the shared norm and the LM head."""

    exit_layer: int
    agreement_text: float | None  # share of positions whose top-1 is the last layer's, [0, 1]
    agreement_continuation: float | None  # the same where vLLM would draft
    perplexity: float | None  # of the prompts
    num_parameters: int  # of the model cut here; a tied head counts once
    num_bytes: int  # of these at the checkpoint's dtype
    tokens_per_s: float | None  # measured, batch 1


@dataclass(frozen=True)
class PairRecord:
    """Greedy self-speculation with one (E, K), as vLLM would count it."""

    exit_layer: int
    num_speculative_tokens: int
    num_drafts: int
    num_drafted: int
    num_accepted: int
    acceptance_rate: float | None
    mean_acceptance_length: float | None
    ideal_speedup: float | None  # where only decoder layers cost
    timed_speedup: float | None  # where a draft costs its exit's measured step, a cycle one more


@dataclass(frozen=True)
class WindowRecord:
    """The end of the first prompt and its continuation, token by token."""

    tokens: list[str]  # what is read at each position
    is_prompt: list[bool]  # per position; false: the model wrote it
    top1: list[list[str]]  # [num_layers][num_positions], what exit E = row + 1 predicts there
    top1_probs: list[list[float]]  # [num_layers][num_positions]
    agrees: list[list[bool]]  # [num_layers][num_positions], equal to the last layer's


@dataclass(frozen=True)
class LensRecord:
    """Everything that the lens found on one model."""

    label: str  # its name in figures
    model: str
    dtype: str  # that the lens computed in
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
    exits: list[ExitRecord]  # num_layers of them; the last is the whole model
    acceptance: list[PairRecord]
    best: PairRecord | None  # of the highest ideal speed-up
    best_timed: PairRecord | None  # of the highest timed one
    window: WindowRecord
    format: int = FORMAT

    def pair(self, exit_layer: int, num_speculative_tokens: int) -> PairRecord:
        """The entry of `acceptance` for (E, K); it must be there."""
        return next(
            pair
            for pair in self.acceptance
            if (pair.exit_layer, pair.num_speculative_tokens)
            == (exit_layer, num_speculative_tokens)
        )

    @property
    def exit_layers(self) -> list[int]:
        """Every E of `acceptance`, ascending."""
        return sorted({pair.exit_layer for pair in self.acceptance})

    @property
    def draft_lengths(self) -> list[int]:
        """Every K of `acceptance`, ascending."""
        return sorted({pair.num_speculative_tokens for pair in self.acceptance})

    def save(self, path: Path) -> None:
        """Write the JSON file."""
        text = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> LensRecord:
        """Read a JSON file that `save` wrote.

        Raises:
            ValueError: It is none, or of another format.
            OSError: It cannot be read.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not JSON: {error}") from error
        found = values.get("format") if isinstance(values, dict) else None
        if found != FORMAT:
            raise ValueError(
                f"{path}: format={found!r} must be {FORMAT}: expected what "
                "`layerskip-vllm lens --json` writes"
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
