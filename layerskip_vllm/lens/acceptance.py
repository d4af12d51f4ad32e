"""Replays how many drafts vLLM would accept, from where an exit agrees; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class AcceptanceCounts:
    """vLLM's counters of greedy self-speculation with one (E, K)."""

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
        """Accepted / drafted; None if nothing was drafted."""
        return self.num_accepted / self.num_drafted if self.num_drafted else None

    @property
    def mean_acceptance_length(self) -> float | None:
        """1 + accepted / drafts, bonus included; None if nothing was drafted."""
        return 1 + self.num_accepted / self.num_drafts if self.num_drafts else None


def replay(
    agreements: Sequence[bool], num_tokens: int, max_tokens: int, num_speculative_tokens: int
) -> AcceptanceCounts:
    """Count the drafts of one greedy request, cycle by cycle.

    The first token comes from prefill. Then each cycle drafts K tokens, accepts those before the
    first disagreement, and adds the target's own token: recovered, or bonus if all K agree. A cycle
    drafts less than K if its last token would exceed max_tokens. A request can stop before
    max_tokens; its last cycle then counts accepted drafts beyond the stop, as vLLM does.

    The early layers see only accepted tokens. So whether a draft agrees depends neither on earlier
    wrong drafts nor on K.

    Args:
        agreements: Entry i is true if the exit, given output tokens up to i, predicts token i + 1
            like the target. min(num_tokens + K, max_tokens) - 2 entries at least.
        num_tokens: Tokens that the request returns, including that of prefill.
        max_tokens: The request's limit, at least num_tokens.
        num_speculative_tokens: K.
    """
    counts = AcceptanceCounts()
    num_emitted = 1
    while num_emitted < num_tokens:
        # The newest token has index num_emitted - 1; the exit reads it and drafts the next.
        first = num_emitted - 1
        num_drafts = min(num_speculative_tokens, max_tokens - num_emitted - 1)
        drafts = agreements[first : first + num_drafts]
        assert len(drafts) == num_drafts, "agreements end before the last cycle does"
        num_accepted = next((i for i, agrees in enumerate(drafts) if not agrees), num_drafts)
        if num_drafts:
            counts += AcceptanceCounts(1, num_drafts, num_accepted)
        num_emitted += num_accepted + 1
    return counts


@dataclass(frozen=True)
class Expectation:
    """Yield of self-speculation with (E, K) on the replayed text."""

    exit_layer: int
    num_speculative_tokens: int
    num_layers: int
    counts: AcceptanceCounts

    @property
    def ideal_speedup(self) -> float | None:
        """Speed-up over plain decoding if only decoder layers cost: a cycle costs (K*E + L) / L."""
        return self.speedup(self.exit_layer / self.num_layers)

    def speedup(self, draft_cost: float) -> float | None:
        """Return tokens per cycle / its cost, relative to plain decoding; None: nothing drafted.

        Args:
            draft_cost: Cost of drafting one token, in full forwards. Verifying costs 1.
        """
        counts = self.counts
        if not counts.num_drafts:
            return None
        num_tokens = counts.num_drafts + counts.num_accepted
        return num_tokens / (counts.num_drafts + counts.num_drafted * draft_cost)
