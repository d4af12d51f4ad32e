"""What a sweep measures, and in which order."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from layerskip_vllm.config import SELF_PREFIX

MIN_TEXTS = 4
"""Least prompts of a measurement: acceptance differs between texts."""


@dataclass(frozen=True)
class EngineSetup:
    """What one engine is started with.

    Attributes:
        exit_layer: E; None is plain vLLM.
        draft_vocab_size: Tokens that drafts come from; None is the whole vocabulary.
    """

    exit_layer: int | None = None
    draft_vocab_size: int | None = None

    @property
    def name(self) -> str:
        """As on the screen and in log files."""
        if self.exit_layer is None:
            return "plain"
        size = self.draft_vocab_size
        vocabulary = "" if size is None else f", draft vocabulary {size}"
        return f"{SELF_PREFIX}{self.exit_layer}{vocabulary}"


PLAIN = EngineSetup()
"""The reference of all speed-ups."""


@dataclass(frozen=True)
class Turn:
    """One measurement: a round, an engine and how it decodes.

    Attributes:
        round_index: From 0.
        setup: The engine.
        num_speculative_tokens: K; 0 in plain vLLM.
        batch_size: Concurrent requests.
    """

    round_index: int
    setup: EngineSetup
    num_speculative_tokens: int
    batch_size: int

    def prompts(self, prompts: Sequence[list[int]]) -> list[list[list[int]]]:
        """Choose the batches of prompts: the same for all turns of a round and batch size.

        Args:
            prompts: Token ids of all prompts.

        Returns:
            [num_batches][batch_size], at least MIN_TEXTS prompts in all; the next round goes on
            where this one ends.
        """
        num_batches = math.ceil(MIN_TEXTS / self.batch_size)
        first = self.round_index * num_batches * self.batch_size
        return [
            [
                prompts[(first + batch * self.batch_size + row) % len(prompts)]
                for row in range(self.batch_size)
            ]
            for batch in range(num_batches)
        ]


@dataclass(frozen=True)
class Plan:
    """A sweep.

    Attributes:
        exit_layers: Values of E.
        draft_lengths: Values of K.
        draft_vocab_sizes: Sizes of the draft vocabulary; None is the whole vocabulary.
        batch_sizes: Concurrent requests.
        num_rounds: Each measures everything once.
    """

    exit_layers: Sequence[int]
    draft_lengths: Sequence[int]
    draft_vocab_sizes: Sequence[int | None] = (None,)
    batch_sizes: Sequence[int] = (1,)
    num_rounds: int = 3

    @property
    def setups(self) -> list[EngineSetup]:
        """The engines that draft."""
        return [EngineSetup(e, v) for e in self.exit_layers for v in self.draft_vocab_sizes]

    def turns(self) -> list[Turn]:
        """All measurements of engines that draft, in order.

        Every other round runs backwards, so that a drift of the machine favours no engine.
        """
        return [turn for index in range(self.num_rounds) for turn in self._round(index)]

    def _round(self, round_index: int) -> list[Turn]:
        turns = [
            Turn(round_index, setup, k, batch_size)
            for setup in self.setups
            for batch_size in self.batch_sizes
            for k in self.draft_lengths
        ]
        return turns[::-1] if round_index % 2 else turns


def schedule(plan: Plan, done: Collection[Turn], all_alive: bool) -> list[Turn]:
    """List the turns that are left, with plain vLLM's among them.

    Plain vLLM comes first in each round: an engine is started again for its turn. Where all engines
    stay alive, that costs nothing, and plain vLLM comes before each of them.

    Args:
        plan: The sweep.
        done: Turns that need no repetition. A round of which only a part is done measures plain
            vLLM again, so that the rest has a reference of its own time.
        all_alive: Whether engines stay alive between their turns.
    """
    left = [turn for turn in plan.turns() if turn not in done]
    scheduled: list[Turn] = []
    for index, turn in enumerate(left):
        before = left[index - 1] if index else None
        is_new_round = before is None or before.round_index != turn.round_index
        is_new_setup = is_new_round or (before is not None and before.setup != turn.setup)
        if is_new_setup if all_alive else is_new_round:
            scheduled += _references(plan, left[index:], turn, all_alive)
        scheduled.append(turn)
    return scheduled


def _references(plan: Plan, left: Sequence[Turn], first: Turn, only_setup: bool) -> Iterator[Turn]:
    """Plain turns for the batch sizes that the round, or the engine in it, has left."""
    needed = {
        turn.batch_size
        for turn in left
        if turn.round_index == first.round_index and (not only_setup or turn.setup == first.setup)
    }
    for batch_size in plan.batch_sizes:
        if batch_size in needed:
            yield Turn(first.round_index, PLAIN, 0, batch_size)
