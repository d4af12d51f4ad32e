"""How many tokens to draft next, and at which exit: from measured times and present acceptance.

What pays depends on the checkpoint, the text, the batch size and the machine, and all but the last
change while the server runs. The policy knows none of them beforehand: it takes the exit and the K,
0 included, that promise the most tokens per second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import NamedTuple

from layerskip_vllm.config import LayerSkipConfig
from layerskip_vllm.scheduling.cycle_times import BUCKETS_PER_DOUBLING, CycleTimes, bucket_of
from layerskip_vllm.scheduling.observing import Observing
from layerskip_vllm.scheduling.outcomes import PRIOR_MATCH_RATE, DraftOutcomes, ExitOutcomes

MIN_GAIN = 1.05
"""Drafting must promise this much more than plain decoding, or noise would decide."""

SWITCH_GAIN = 1.01
"""Another exit or K must promise this much more than the one in use. A switch costs nothing, so
little is enough; but a choice that follows the noise of every step is never timed well."""

FIRST_PROBE, LAST_PROBE, LAST_PLAIN_PROBE = 8, 128, 512
"""Choices between two probes: doubled from the first to the last. The very last is for several
exits where nothing is drafted: observing steps show acceptance there, and probes only time."""

PLAIN_STEPS = 6
"""Steps without drafts when a batch size is new: nothing else shows how much more a step with more
rows takes. The first may end a prompt, and then it is not timed."""


class Choice(NamedTuple):
    """What the next step does."""

    exit_index: int
    """The exit that drafts after it, as an index into the exits."""
    num_drafts: int
    """K."""
    observes: bool = False
    """Whether it counts the matches of every exit."""


class DraftPolicy:
    """Chooses exit and K, step by step; without `adaptive`, the first exit and the most drafts."""

    def __init__(
        self,
        config: LayerSkipConfig,
        max_drafts: int,
        captured: Collection[int] | None = None,
    ) -> None:
        """Know what the layers cost, and nothing else.

        Args:
            config: The exits.
            max_drafts: The engine's K.
            captured: The K that have CUDA graphs, 1 among them: those among which to choose. None:
                nothing has graphs.
        """
        self.is_adaptive = config.adaptive
        self._draft_lengths = sorted(captured or range(1, max_drafts + 1))
        self.has_exits = len(config.exits) > 1
        self.outcomes: list[DraftOutcomes] = [DraftOutcomes()]
        if self.has_exits:
            rates = config.match_rates or [
                # Shallower exits are right less often than the first guess, deeper ones more often.
                PRIOR_MATCH_RATE ** (config.exit_layer / layer)
                for layer in config.exit_layers
            ]
            self.outcomes = [ExitOutcomes(rates[exit_.layer_index]) for exit_ in config.exits]
        self.cycle_times = CycleTimes(
            config.exit_draft_layers, config.num_layers + config.head_layers, max_drafts
        )
        self._observing = Observing(config, has_graphs=captured is not None)
        self._exit_index, self._num_drafts = config.exit_index, 0
        self._knows_exits = False
        self._plain_steps: Counter[int] = Counter()
        self._choices_to_probe = self._probe_interval = FIRST_PROBE
        self._num_probes = 0
        self._is_probe = False

    def choose(self, limits: Sequence[int]) -> Choice:
        """Choose exit and K of the next cycle, K in [0, max(limits)].

        Args:
            limits: Most drafts of each request that decodes; 0 for those that may not draft.
        """
        most = max(limits, default=0)
        if not self.is_adaptive or most == 0:
            return Choice(self._exit_index, most)
        if self._is_new(len(limits)):
            return Choice(self._exit_index, 0)
        exit_index, num_drafts = self._best_or_probe(limits, most)
        is_due = self.has_exits and self._observing.is_due(exit_index, num_drafts)
        return Choice(exit_index, num_drafts, observes=is_due)

    def observe_outcomes(
        self,
        exit_index: int,
        num_drafted: Sequence[int],
        num_accepted: Sequence[int],
        exit_counts: Sequence[Sequence[int]] = (),
    ) -> None:
        """Learn from one step which drafts were right.

        Args:
            exit_index: The exit that made the drafts.
            num_drafted: Verified drafts of each request that had some.
            num_accepted: Accepted drafts of each.
            exit_counts: Of an observing step, how many tokens it emitted, and how many of them each
                exit would have drafted. The drafts of the exit in use are among them, and count
                once.
        """
        has_changed = self.outcomes[exit_index].observe(num_drafted, num_accepted)
        for i, (reached, matched) in enumerate(exit_counts):
            if i != exit_index or not num_drafted:
                has_changed |= self.outcomes[i].add(reached, matched)
        if exit_counts:
            self._knows_exits = True
            self._observing.observe(exit_counts[0][0])
        if has_changed:
            self._observing.start_over()

    def observe_step(
        self, batch_size: int, verified: Choice, proposed: Choice, seconds: float
    ) -> None:
        """Learn the time of a step that verified one cycle, proposed another and did not observe.

        An observing step takes longer than its cycle; its time teaches nothing.
        """
        self.cycle_times.observe_step(batch_size, verified[:2], proposed[:2], seconds)

    def tokens_per_second(self, limits: Sequence[int]) -> list[list[float]]:
        """What a cycle at each exit with K = 0 .. max(limits) promises, all requests together.

        A request's k-th draft is accepted only if those before it are. One that may draft less, or
        nothing, yields its token all the same.
        """
        having = Counter(limits)
        num_drafting = list(accumulate(having[k] for k in range(max(limits), 0, -1)))[::-1]
        rates = []
        all_times = self.cycle_times.estimate(len(limits))
        for outcomes, times in zip(self.outcomes, all_times, strict=True):
            num_tokens, is_accepted, hoped_rate = float(len(limits)), 1.0, outcomes.hoped_rate
            rates.append([num_tokens / times[0]])
            for num_requests, seconds in zip(num_drafting, times[1:], strict=False):
                is_accepted *= hoped_rate
                num_tokens += is_accepted * num_requests
                rates[-1].append(num_tokens / seconds)
        return rates

    def _is_new(self, batch_size: int) -> bool:
        """Whether too few steps without drafts were made at this batch size or near it.

        Choices count, not times: under steady arrivals no step can be timed.
        """
        bucket = bucket_of(batch_size)
        near = min(self._plain_steps, key=lambda known: abs(known - bucket), default=bucket)
        if abs(near - bucket) >= BUCKETS_PER_DOUBLING:
            near = bucket
        self._plain_steps[near] += 1
        return self._plain_steps[near] <= PLAIN_STEPS

    def _best_or_probe(self, limits: Sequence[int], most: int) -> tuple[int, int]:
        rates = self.tokens_per_second(limits)
        lengths = [k for k in self._draft_lengths if k <= most]
        best_drafts = [max(lengths, key=of_exit.__getitem__) for of_exit in rates]
        promises = [of_exit[k] for of_exit, k in zip(rates, best_drafts, strict=True)]
        top = promises.index(max(promises))
        if self._knows_exits and promises[top] > SWITCH_GAIN * promises[self._exit_index]:
            self._exit_index = top
        of_exit = rates[self._exit_index]
        best = max([0, *lengths], key=of_exit.__getitem__)
        if of_exit[best] < MIN_GAIN * of_exit[0]:
            best = 0
        kept = min(self._num_drafts, lengths[-1])
        if best and kept and of_exit[best] < SWITCH_GAIN * of_exit[kept]:
            best = kept
        self._num_drafts = best
        if not self._is_time_to_probe(best):
            return self._exit_index, best
        if best == 0:
            return self._exit_index, 1
        more = min((k for k in lengths if k > best), default=best)
        fewer = max((k for k in lengths if k < best), default=0)
        probes = [(self._exit_index, k) for k in (more, 0, fewer)]
        probes += [(i, k) for i, k in enumerate(best_drafts) if i != self._exit_index]
        return probes[self._num_probes % len(probes)]

    def _is_time_to_probe(self, best: int) -> bool:
        """Whether to measure a choice not taken: acceptance and times change.

        Beside drafting these are one draft more, none, one less and the other exits, in turn. Where
        nothing is drafted it is one draft, and again while the probes' drafts are accepted.
        """
        self._choices_to_probe -= 1
        all_matched = self.outcomes[self._exit_index].all_matched
        should_continue = self._is_probe and best == 0 and all_matched
        self._is_probe = self._choices_to_probe <= 0 or should_continue
        if self._is_probe and not should_continue:
            last = LAST_PLAIN_PROBE if self.has_exits and best == 0 else LAST_PROBE
            self._probe_interval = min(2 * self._probe_interval, last)
            self._choices_to_probe = self._probe_interval
            self._num_probes += 1
        return self._is_probe
