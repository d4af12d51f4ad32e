"""How many tokens to draft next: K from measured times and the present acceptance.

What pays depends on the checkpoint, the text, the batch size and the machine, and all but the last
change while the server runs. The policy knows none of them beforehand: it takes the K, 0 included,
that promises the most tokens per second.
"""

from __future__ import annotations

from collections.abc import Sequence

from layerskip_vllm.config import LayerSkipConfig
from layerskip_vllm.scheduling.cycle_times import CycleTimes

PRIOR_MATCH_RATE, PRIOR_TRIALS = 0.7, 4.0
"""The belief before the first drafts: enough to try, and little enough to unlearn at once."""

DECAY_PER_STEP = 0.98
"""Weight that past outcomes keep in each step that has new ones."""

MIN_GAIN = 1.05
"""Drafting must promise this much more than plain decoding, or noise would decide."""

FIRST_PROBE, LAST_PROBE = 8, 128
"""Choices between two probes: doubled from the first to the last."""


class DraftOutcomes:
    """How often a draft is what the target samples in its place: decayed counts, all requests."""

    def __init__(self) -> None:
        self._reached, self._matched = PRIOR_TRIALS, PRIOR_TRIALS * PRIOR_MATCH_RATE
        self.all_matched = False
        """Whether every draft of the last step that had some was accepted."""

    def observe(self, num_drafted: Sequence[int], num_accepted: Sequence[int]) -> None:
        """Add one step's drafts and accepted drafts of each request that had drafts.

        A draft's outcome is known where every draft before it was accepted.
        """
        if not num_drafted:
            return
        matched = sum(num_accepted)
        num_failed = sum(a < d for d, a in zip(num_drafted, num_accepted, strict=True))
        self._reached = self._reached * DECAY_PER_STEP + matched + num_failed
        self._matched = self._matched * DECAY_PER_STEP + matched
        self.all_matched = num_failed == 0

    @property
    def match_rate(self) -> float:
        """Matched of reached, in [0, 1]."""
        return self._matched / self._reached


class DraftPolicy:
    """Chooses K, step by step; without `adaptive` it always takes the most."""

    def __init__(self, config: LayerSkipConfig, max_drafts: int) -> None:
        self.is_adaptive = config.adaptive
        self.outcomes = DraftOutcomes()
        self.cycle_times = CycleTimes(config.exit_layer, config.num_layers, max_drafts)
        self._choices_to_probe = self._probe_interval = FIRST_PROBE
        self._num_probes = 0
        self._is_probe = False

    def choose(self, limits: Sequence[int]) -> int:
        """Choose K of the next cycle, in [0, max(limits)].

        Args:
            limits: Most drafts of each request that decodes; 0 for those that may not draft.
        """
        most = max(limits, default=0)
        if not self.is_adaptive or most == 0:
            return most
        rates = self.tokens_per_second(limits)
        best = rates.index(max(rates))
        if rates[best] < MIN_GAIN * rates[0]:
            best = 0
        return self._probe(best, most)

    def tokens_per_second(self, limits: Sequence[int]) -> list[float]:
        """What a cycle with K = 0 .. max(limits) promises, all requests together.

        A request's k-th draft is accepted only if those before it are. One that may draft less, or
        nothing, yields its token all the same.
        """
        times = self.cycle_times.estimate(len(limits))
        num_tokens, is_accepted = float(len(limits)), 1.0
        rates = [num_tokens / times[0]]
        for num_drafts in range(1, max(limits) + 1):
            is_accepted *= self.outcomes.match_rate
            num_tokens += is_accepted * sum(limit >= num_drafts for limit in limits)
            rates.append(num_tokens / times[num_drafts])
        return rates

    def _probe(self, best: int, most: int) -> int:
        """Now and then, measure a choice not taken: acceptance and times change.

        Beside drafting these are no drafts, one less and one more, in turn. Where nothing is
        drafted it is one draft, and again while the probes' drafts are accepted.
        """
        self._choices_to_probe -= 1
        should_continue = self._is_probe and best == 0 and self.outcomes.all_matched
        self._is_probe = self._choices_to_probe <= 0 or should_continue
        if not self._is_probe:
            return best
        if not should_continue:
            self._probe_interval = min(2 * self._probe_interval, LAST_PROBE)
            self._choices_to_probe = self._probe_interval
            self._num_probes += 1
        if best == 0:
            return 1
        return min((best + 1, 0, best - 1)[self._num_probes % 3], most)
