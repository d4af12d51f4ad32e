"""A policy that follows a script, and a record of what observing steps have told it."""

from __future__ import annotations

import random

from layerskip_vllm.measure.engine import scheduler
from layerskip_vllm.scheduling.policy import Choice


class ScriptedChoices:
    """Takes the place of an engine's policy: another exit, K and kind of step each time."""

    def __init__(
        self, llm, num_exits: int, max_drafts: int, seed: int = 0, observing: float = 0.2
    ) -> None:
        self._observing = observing
        self._rng, self._num_exits, self._max_drafts = random.Random(seed), num_exits, max_drafts
        self.made: list[Choice] = []
        self.observed: list[list[list[int]]] = []
        policy = scheduler(llm).policy
        policy.choose, policy.observe_outcomes = self._choose, self._note
        self.next: Choice | None = None
        """What every step does, where a test decides it instead of chance."""

    def _choose(self, limits) -> Choice:
        choice = self.next or self._draw()
        choice = choice._replace(num_drafts=min(choice.num_drafts, max(limits, default=0)))
        self.made.append(choice)
        return choice

    def _draw(self) -> Choice:
        num_drafts = self._rng.choice([*range(self._max_drafts + 1), self._max_drafts])
        exit_index = self._rng.randrange(self._num_exits)
        return Choice(exit_index, num_drafts, self._rng.random() < self._observing)

    def _note(self, _exit_index, _num_drafted, _num_accepted, exit_counts) -> None:
        if exit_counts:
            self.observed.append(exit_counts)

    @property
    def exits(self) -> set[int]:
        """The exits that drafted, as indices."""
        return {choice.exit_index for choice in self.made if choice.num_drafts > 0}

    @property
    def counts(self) -> list[list[int]]:
        """[reached, matched] of each exit, of all observing steps together."""
        return [
            [sum(step[j][i] for step in self.observed) for i in (0, 1)]
            for j in range(self._num_exits)
        ]


def choices_of(llm) -> ScriptedChoices:
    """The script of an engine that `make_self_llm` has opened with several exits."""
    return scheduler(llm).policy.choose.__self__
