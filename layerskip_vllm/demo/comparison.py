"""What the measured rounds add up to: medians, the spread of the paired ratios, acceptance."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from layerskip_vllm.demo.streams import Stream
from layerskip_vllm.measure.decoding import DraftCounts
from layerskip_vllm.measure.spread import Spread, ratios


@dataclass(frozen=True)
class Round:
    """One turn of each server over the same prompts."""

    plain: Sequence[Stream]
    speculated: Sequence[Stream]

    @property
    def speed_up(self) -> float:
        """Tokens/s with self-speculation over plain tokens/s, all prompts together."""
        return tokens_per_s(self.speculated) / tokens_per_s(self.plain)

    def only(self, prompt: int) -> Round:
        """The round with one of its prompts, by index."""
        return Round([self.plain[prompt]], [self.speculated[prompt]])


@dataclass(frozen=True)
class Figures:
    """A row of the table.

    Attributes:
        num_tokens: Of one round, with self-speculation.
        plain_tokens_per_s: Median over the rounds.
        self_tokens_per_s: Median over the rounds.
        speed_up: Spread of the rounds' ratios; the two speeds of a ratio are of the same round.
        drafts: Sum over the rounds.
        same_text: Whether self-speculation gave plain decoding's text in each round.
    """

    num_tokens: int
    plain_tokens_per_s: float
    self_tokens_per_s: float
    speed_up: Spread
    drafts: DraftCounts
    same_text: bool

    @classmethod
    def of(cls, rounds: Sequence[Round]) -> Figures:
        """Sum up at least one round."""
        plain = [tokens_per_s(each.plain) for each in rounds]
        speculated = [tokens_per_s(each.speculated) for each in rounds]
        streams = chain.from_iterable(each.speculated for each in rounds)
        return cls(
            num_tokens=sum(stream.num_tokens for stream in rounds[0].speculated),
            plain_tokens_per_s=statistics.median(plain),
            self_tokens_per_s=statistics.median(speculated),
            speed_up=ratios(speculated, plain),
            drafts=sum((stream.drafts for stream in streams), DraftCounts()),
            same_text=all(
                one.text == other.text
                for each in rounds
                for one, other in zip(each.plain, each.speculated, strict=True)
            ),
        )


def tokens_per_s(streams: Sequence[Stream]) -> float:
    """Tokens/s of streams that ran one after another, pauses left out."""
    return sum(each.num_tokens for each in streams) / sum(each.seconds for each in streams)


def median_round(rounds: Sequence[Round]) -> int:
    """Index of the round whose speed-up is nearest to the median."""
    median = statistics.median(each.speed_up for each in rounds)
    return min(range(len(rounds)), key=lambda index: abs(rounds[index].speed_up - median))
