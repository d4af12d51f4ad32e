"""Counts what `self:auto` chooses, inside its engine's process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.stopwatch import replaced

if TYPE_CHECKING:
    from layerskip_vllm.scheduling.policy import Choice, DraftPolicy

OBSERVED = "observed"
"""Beside "E,K": steps that counted the matches of every exit."""


@contextmanager
def counted(policy: DraftPolicy, exit_layers: Sequence[int]) -> Generator[Counter[str]]:
    """Count the choices of a policy while the block runs: "E,K" -> steps; K = 0 has no E.

    `exit_layers` has an entry for each of the policy's exits; two exits may share a layer and
    differ by the head.
    """
    chosen: Counter[str] = Counter()

    def counting(choose, _label):  # type: ignore[no-untyped-def]
        def choose_and_count(limits) -> Choice:  # type: ignore[no-untyped-def]
            choice: Choice = choose(limits)
            exit_layer = exit_layers[choice.exit_index] if choice.num_drafts else 0
            chosen[f"{exit_layer},{choice.num_drafts}"] += 1
            chosen[OBSERVED] += choice.observes
            return choice

        return choose_and_count

    with replaced([(policy, "choose", "choose")], counting):
        yield chosen
