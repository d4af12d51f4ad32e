"""The texts and their order: contenders take turns on the same prompts.

Each batch size has a screening of all fixed pairs on each set, which selects the best ones; a stage
for each set; and the mixture, in which the sets alternate in the same engines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

SCREENING, MIXTURE = "screening", "mixture"
"""Stages besides those named after a set."""


class Contender(NamedTuple):
    """One way to decode."""

    exit_layer: int | None
    """E; None for `AUTO` and `PLAIN`."""
    num_drafts: int
    """K; 0 for `PLAIN`, -1 for `AUTO`."""

    @property
    def engine(self) -> str:
        """The engine that it runs on; all K of one E share one."""
        if self.exit_layer is None:
            return "plain" if self.num_drafts == 0 else "self:auto"
        return f"self:{self.exit_layer}"

    @property
    def name(self) -> str:
        """In tables."""
        return self.engine if self.exit_layer is None else f"{self.engine}, K={self.num_drafts}"


PLAIN, AUTO = Contender(None, 0), Contender(None, -1)


class Turn(NamedTuple):
    """All contenders decode the same batches once; in the mixture, pairs decode every other."""

    batch_size: int
    stage: str
    number: int
    """Within the stage; negative ones warm up and do not count."""
    text_set: str
    num_batches: int
    max_tokens: int
    """Output tokens of each request."""

    def batches(self, contender: Contender) -> range:
        """Which batches a contender decodes.

        A fixed pair's speed does not depend on earlier texts, so half of a phase shows it.
        `self:auto` follows the change through the whole phase.
        """
        is_half = self.stage == MIXTURE and contender != AUTO
        return range(0, self.num_batches, 2 if is_half else 1)


@dataclass(frozen=True)
class Plan:
    """The amounts to decode.

    Attributes:
        exit_layers: Each E.
        draft_lengths: Each K.
        text_sets: Set -> whether fixed pairs run on it.
        max_tokens: Output tokens of each request.
        screening_tokens: The same while pairs are screened.
        screening_batches: Batches of each pair on each set then.
        num_turns: Of each set's stage, after one that warms up.
        num_cycles: Of the mixture, after one phase that warms up.
        batches_per_phase: Batches of `self:auto` between two changes of the text.
    """

    exit_layers: Sequence[int]
    draft_lengths: Sequence[int]
    text_sets: Mapping[str, bool]
    max_tokens: int = 64
    screening_tokens: int = 40
    screening_batches: int = 1
    num_turns: int = 4
    num_cycles: int = 2
    batches_per_phase: int = 6

    @property
    def pairs(self) -> list[Contender]:
        """Every fixed pair."""
        return [Contender(e, k) for e in self.exit_layers for k in self.draft_lengths]

    @property
    def paying(self) -> list[str]:
        """Sets on which fixed pairs run."""
        return [name for name, pays in self.text_sets.items() if pays]

    @property
    def stages(self) -> list[str]:
        """In order, for each batch size."""
        screening = [SCREENING] if self.paying else []
        mixture = [MIXTURE] if len(self.paying) > 1 else []
        return [*screening, *self.text_sets, *mixture]

    def turns(self, batch_size: int, stage: str) -> Iterator[Turn]:
        """All turns of a stage."""
        if stage == SCREENING:
            for index, text_set in enumerate(self.paying):
                yield Turn(
                    *(batch_size, stage, index, text_set),
                    *(self.screening_batches, self.screening_tokens),
                )
        elif stage == MIXTURE:
            sets = self.paying
            for index in range(-1, self.num_cycles * len(sets)):
                text_set = sets[index % len(sets)]
                tokens = self.max_tokens
                yield Turn(batch_size, stage, index, text_set, self.batches_per_phase, tokens)
        else:
            for index in range(-1, self.num_turns):
                yield Turn(batch_size, stage, index, stage, 1, self.max_tokens)

    def contenders(self, stage: str, finalists: Sequence[Contender]) -> list[Contender]:
        """The contenders of a stage."""
        if stage == SCREENING:
            return self.pairs
        if stage == MIXTURE:
            return [AUTO, *finalists]
        return [PLAIN, AUTO, *(finalists if self.text_sets[stage] else [])]


def find_finalists(
    speeds: Mapping[str, Mapping[Contender, float]], num_over_all: int = 2
) -> list[Contender]:
    """The best pair of each set, and the best ones over all sets together.

    Args:
        speeds: Set -> pair -> tokens/s.
        num_over_all: How many of the latter.
    """
    if not speeds:
        return []
    by_set = list(speeds.values())
    over_all = {pair: mixed_speed([of_set[pair] for of_set in by_set]) for pair in by_set[0]}
    best = sorted(over_all, key=lambda pair: -over_all[pair])[:num_over_all]
    best += [max(of_set, key=lambda pair: of_set[pair]) for of_set in by_set]
    return sorted(set(best))


def mixed_speed(speeds: Sequence[float]) -> float:
    """Tokens/s over equally many tokens at each speed."""
    return len(speeds) / sum(1 / speed for speed in speeds)
