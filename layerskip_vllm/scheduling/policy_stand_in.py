"""Today's policy of K behind the interface of the coming policy of (E, K), which replaces this."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from layerskip_vllm.config import LayerSkipConfig
from layerskip_vllm.scheduling import policy


class Choice(NamedTuple):
    """What a step is to do."""

    exit_index: int
    """Which exit drafts after it."""
    num_drafts: int
    """K."""
    observes: bool = False
    """Whether its forward looks at every exit."""


class DraftPolicy:
    """Drafts at the first exit; a match rate per exit is learnt and not used."""

    def __init__(self, config: LayerSkipConfig, max_drafts: int) -> None:
        self._first = config.exit_index
        self._of_first = policy.DraftPolicy(config, max_drafts)
        self.outcomes = [policy.DraftOutcomes() for _ in config.exit_layers]
        self.outcomes[self._first] = self._of_first.outcomes

    def choose(self, limits: Sequence[int]) -> Choice:
        """Choose for requests that may have so many drafts each."""
        return Choice(self._first, self._of_first.choose(limits))

    def observe_step(
        self, batch_size: int, verified: tuple[int, int], proposed: tuple[int, int], seconds: float
    ) -> None:
        """Learn the time of a step that verified one (exit, K) and proposed another."""
        if verified[0] == proposed[0] == self._first:
            self._of_first.cycle_times.observe_step(batch_size, verified[1], proposed[1], seconds)

    def observe_outcomes(
        self,
        exit_index: int,
        num_drafted: Sequence[int],
        num_accepted: Sequence[int],
        exit_counts: Sequence[Sequence[int]] = (),
    ) -> None:
        """Learn which drafts of an exit were accepted, and what each would have drafted."""
        self.outcomes[exit_index].observe(num_drafted, num_accepted)
        for i, (reached, matched) in enumerate(exit_counts):
            if i != exit_index:
                self.outcomes[i].observe([1] * reached, [1] * matched + [0] * (reached - matched))
