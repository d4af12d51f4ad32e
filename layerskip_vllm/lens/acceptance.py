"""How many drafts vLLM would accept, replayed from where an exit agrees: integers, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class AcceptanceCounts:
    """vLLM's counters of greedy self-speculation, for one exit layer E and one K."""

    num_drafts: int = 0  # cycles
    num_drafted: int = 0  # tokens
    num_accepted: int = 0  # tokens

    def __add__(self, other: AcceptanceCounts) -> AcceptanceCounts:
        return AcceptanceCounts(
            self.num_drafts + other.num_drafts,
            self.num_drafted + other.num_drafted,
            self.num_accepted + other.num_accepted,
        )

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted / drafted; None where nothing was drafted."""
        return self.num_accepted / self.num_drafted if self.num_drafted else None

    @property
    def mean_acceptance_length(self) -> float | None:
        """1 + accepted / drafts, bonus included; None where nothing was drafted."""
        return 1 + self.num_accepted / self.num_drafts if self.num_drafts else None


def replay(
    agreements: Sequence[bool], num_tokens: int, num_speculative_tokens: int
) -> AcceptanceCounts:
    """Count the drafts of one greedy request, cycle by cycle.

    The first token comes from prefill. Then each cycle drafts K tokens, accepts those before the
    first disagreement, and adds the target's own token: recovered, or bonus where all K agree.
    Early layers only ever see accepted tokens, so whether a draft agrees does not depend on E's
    earlier mistakes, nor on K. vLLM drafts K tokens in a request's last cycle too, and counts what
    it accepts beyond the request's end, so agreements reach K - 1 tokens further.

    Args:
        agreements: Entry i says whether the exit, having read output token i, predicts token
            i + 1 as the target does; at least num_tokens + K - 2 entries where num_tokens > 1.
        num_tokens: Tokens that the request returns, that of prefill included.
        num_speculative_tokens: K.
    """
    counts = AcceptanceCounts()
    num_emitted = 1
    while num_emitted < num_tokens:
        # Token num_emitted - 1 is the newest; the exit reads it and drafts token num_emitted.
        drafts = agreements[num_emitted - 1 : num_emitted - 1 + num_speculative_tokens]
        assert len(drafts) == num_speculative_tokens, "agreements end before the last cycle does"
        num_accepted = next((i for i, agrees in enumerate(drafts) if not agrees), len(drafts))
        counts += AcceptanceCounts(1, num_speculative_tokens, num_accepted)
        num_emitted += num_accepted + 1
    return counts


@dataclass(frozen=True)
class Expectation:
    """What self-speculation with (E, K) would yield on the replayed text."""

    exit_layer: int
    num_speculative_tokens: int
    num_layers: int
    counts: AcceptanceCounts

    @property
    def ideal_speedup(self) -> float | None:
        """Speed-up over plain decoding where only decoder layers cost: a cycle is (K*E + L) / L."""
        return self.speedup(self.exit_layer / self.num_layers)

    def speedup(self, draft_cost: float) -> float | None:
        """Tokens of a cycle / its cost; plain decoding's quotient is 1. None: nothing drafted.

        Args:
            draft_cost: Of drafting one token, in full forwards. Verifying costs 1.
        """
        length = self.counts.mean_acceptance_length
        return length and length / (1 + self.num_speculative_tokens * draft_cost)
