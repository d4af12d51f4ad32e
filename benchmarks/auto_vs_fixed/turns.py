"""Runs the stages of a plan on started engines, and estimates the time left."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from benchmarks.auto_vs_fixed.plan import (
    AUTO,
    SCREENING,
    Contender,
    Plan,
    Turn,
    find_finalists,
)
from benchmarks.auto_vs_fixed.results import Measurement, Results
from benchmarks.auto_vs_fixed.subjects import Subject
from benchmarks.child import Child
from layerskip_vllm.measure.decoding import Decoding, DraftCounts

logger = logging.getLogger(__name__)

WARM_UP_TOKENS = 8
"""Of each contender before the screening: the first steps of a batch size are slow."""

EXPECTED_FINALISTS = 3
"""For the estimate of the time left."""

STAGE_OFFSET = 29
"""Between the first prompts of two stages, so that they differ."""

SETTLE_S = 0.4
"""OpenMP's threads spin for 0.2 s after an engine's work; they would slow the next one's."""


class Progress:
    """The remaining work, in tokens of one request."""

    def __init__(self, plan: Plan, stages: Sequence[tuple[int, str]]) -> None:
        """Start the clock.

        Args:
            plan: The plan.
            stages: (batch size, stage) of those to run.
        """
        self._started = time.monotonic()
        self._done = 0
        expected = [Contender(i, 1) for i in range(EXPECTED_FINALISTS)]
        self._left = {
            (batch_size, stage): sum(
                _num_tokens(turn, plan.contenders(stage, expected))
                for turn in plan.turns(batch_size, stage)
            )
            for batch_size, stage in stages
        }

    def add(self, turn: Turn, contenders: Sequence[Contender]) -> float:
        """Record a finished turn; returns the estimated minutes left."""
        num_tokens = _num_tokens(turn, contenders)
        self._done += num_tokens
        stage = turn.batch_size, turn.stage
        self._left[stage] = max(0, self._left[stage] - num_tokens)
        per_token = (time.monotonic() - self._started) / self._done
        return per_token * sum(self._left.values()) / 60

    def finish(self, batch_size: int, stage: str) -> None:
        """Record a finished stage."""
        self._left[batch_size, stage] = 0


def _num_tokens(turn: Turn, contenders: Sequence[Contender]) -> int:
    return turn.max_tokens * sum(len(turn.batches(contender)) for contender in contenders)


def measure(
    subject: Subject,
    plan: Plan,
    stages: Sequence[tuple[int, str]],
    children: Mapping[str, Child],
    results: Results,
) -> None:
    """Run stages.

    Args:
        subject: Gives the prompts.
        plan: The plan.
        stages: (batch size, stage) in their order, the screening of a batch size first.
        children: Engine name -> its process.
        results: Receives the measurements.
    """
    progress = Progress(plan, stages)
    for batch_size, stage in stages:
        finalists = screened(results, plan, batch_size)
        contenders = plan.contenders(stage, finalists)
        if stage == SCREENING:
            _warm_up(subject, contenders, children, batch_size)
        for turn in plan.turns(batch_size, stage):
            speeds = []
            for contender in contenders[:: 1 if turn.number % 2 else -1]:
                measurement = decode(subject, plan, turn, contender, children[contender.engine])
                results.add(measurement)
                speeds.append(f"{contender.name} {measurement.tokens_per_s:.1f}")
            minutes = progress.add(turn, contenders)
            where = f"batch {batch_size}, {stage} {turn.number + 1}, {turn.text_set}"
            logger.info("%s: %s tokens/s; %.0f min left", where, "; ".join(speeds), minutes)
        progress.finish(batch_size, stage)
        results.finish(batch_size, stage)


def screened(results: Results, plan: Plan, batch_size: int) -> list[Contender]:
    """The pairs that the screening of a batch size selects; none before it."""
    speeds: dict[str, dict[Contender, float]] = {}
    for each in results.of(batch_size, SCREENING):
        speeds.setdefault(each.turn.text_set, {})[each.contender] = each.tokens_per_s
    return find_finalists(speeds) if results.is_finished(batch_size, SCREENING) else []


def _warm_up(
    subject: Subject,
    contenders: Sequence[Contender],
    children: Mapping[str, Child],
    batch_size: int,
) -> None:
    turn = Turn(batch_size, SCREENING, -1, subject.paying[0], 1, WARM_UP_TOKENS)
    for contender in contenders:
        call(children[contender.engine], prompts_of(subject, turn, 0)[0], turn, contender)


def decode(
    subject: Subject, plan: Plan, turn: Turn, contender: Contender, child: Child
) -> Measurement:
    """Decode a turn's batches with one contender."""
    time.sleep(SETTLE_S)
    num_tokens, seconds, drafts, choices = 0, 0.0, DraftCounts(), Counter[str]()
    prompts = prompts_of(subject, turn, plan.stages.index(turn.stage))
    for batch in turn.batches(contender):
        decoding, chosen = call(child, prompts[batch], turn, contender)
        num_tokens += decoding.num_decoded
        seconds += sum(decoding.step_s[step] for step in decoding.full_steps())
        drafts += decoding.drafts
        choices += chosen
    return Measurement(
        *(turn, contender, num_tokens, seconds),
        *(drafts.num_drafted, drafts.num_accepted, dict(choices)),
    )


def call(
    child: Child, prompts: Sequence[Sequence[int]], turn: Turn, contender: Contender
) -> tuple[Decoding, Counter[str]]:
    """Decode one batch; also returns the choices of `self:auto`."""
    arguments = {"prompts": prompts, "max_tokens": turn.max_tokens}
    if contender == AUTO:
        return child.call("decode_choosing", **arguments)  # type: ignore[return-value]
    if contender.num_drafts:
        arguments["num_drafts"] = contender.num_drafts
    return child.call("decode", **arguments), Counter()  # type: ignore[return-value]


def prompts_of(subject: Subject, turn: Turn, stage_number: int) -> list[list[list[int]]]:
    """The turn's batches of prompts, [num_batches][batch_size]; the same for all contenders."""
    prompts = subject.texts[turn.text_set].prompts
    size = turn.batch_size
    first = stage_number * STAGE_OFFSET + (turn.number + 1) * turn.num_batches * size
    return [
        [prompts[(first + batch * size + row) % len(prompts)] for row in range(size)]
        for batch in range(turn.num_batches)
    ]
