"""What one engine step did and what was chosen for it, at `/metrics` beside vLLM's own metrics."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from prometheus_client import Counter, Gauge, Histogram
from vllm.v1.metrics.utils import create_metric_per_engine

from layerskip_vllm.config import OPTIONS_KEY

NUM_RESUMED_TOKENS = "num_resumed_tokens"
NUM_FRESH_TOKENS = "num_fresh_tokens"
VERIFY_TIME = "verify_time_seconds"
DRAFT_TIME = "draft_time_seconds"
EXIT_MATCHES = "exit_matches"
"""For each exit [reached, matched] of an observing step, from a worker to the scheduler alone."""
EXIT_LAYER, NUM_DRAFTS, DRAFT_VOCAB = "exit_layer", "num_drafts", "draft_vocab_size"
EXIT_MATCH_RATE = "exit_match_rate"

COUNTERS = {
    NUM_RESUMED_TOKENS: "Tokens verified from the state that their draft left at the exit layer.",
    NUM_FRESH_TOKENS: "Tokens whose early layers ran in the target's forward, prompts included.",
}

HISTOGRAMS = {
    DRAFT_TIME: "Seconds of a propose step, of all requests together. Steps without one are none.",
    VERIFY_TIME: "Seconds from the start of a step that verifies drafts to its sampled tokens.",
}

GAUGES = {
    EXIT_LAYER: "Early layers that draft after the last step: E.",
    NUM_DRAFTS: "Tokens that are drafted for a request after the last step: K.",
    DRAFT_VOCAB: "Tokens among which the draft chooses after the last step; 0: all.",
}
"""The scheduler's last choice."""

EXIT_MATCH_RATE_TEXT = (
    "Learnt share of tokens that a draft at this exit layer matches, after right ones before it."
)

TIME_BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds."""


class StepStats:
    """Counts and clocks one step while it runs, by the worker's own clock.

    A step is a forward of the target, sampling, and then a propose step if there is one. Call the
    methods once a phase's results are on the host.
    """

    def __init__(
        self, num_scheduled_tokens: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.num_resumed_tokens = 0
        self.exit_matches: list[list[int]] | None = None
        """For each exit [reached, matched]; on runner V2 those of a step that ended earlier."""
        self._num_scheduled_tokens = num_scheduled_tokens
        self._clock = clock
        self._phase_started = clock()
        self.seconds: dict[str, float] = {}
        """Times of phases by name. On runner V2 they are those of a step that ended earlier."""

    def sampled(self, num_verified: int) -> None:
        """Record that the step's tokens are sampled; it verified `num_verified` drafts for them."""
        seconds = self._end_phase()
        if num_verified:
            self.seconds[VERIFY_TIME] = seconds

    def drafted(self) -> None:
        """Record that the propose step has its drafts."""
        self.seconds[DRAFT_TIME] = self._end_phase()

    def _end_phase(self) -> float:
        started, self._phase_started = self._phase_started, self._clock()
        return self._phase_started - started

    def as_dict(self) -> dict[str, object]:
        """The numbers by name, plain enough for any wire; a time is there where it was spent.

        Fresh tokens are all that the step ran its early layers on, prompts included.
        """
        return {
            NUM_RESUMED_TOKENS: self.num_resumed_tokens,
            NUM_FRESH_TOKENS: self._num_scheduled_tokens - self.num_resumed_tokens,
            **self.seconds,
            **({} if self.exit_matches is None else {EXIT_MATCHES: self.exit_matches}),
        }


class StepMetrics:
    """Prometheus metrics `vllm:layerskip_*`, labelled as vLLM labels its own.

    The prefix is vLLM's too: it drops metrics of that name when a new engine takes the place of an
    old one in a process, and `LLM.get_metrics` shows no others.
    """

    def __init__(
        self,
        metric_types: Mapping[type, type],  # which classes stand for Prometheus's; Ray has others
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
        exit_labels: Sequence[tuple[int, int]],  # `LayerSkipConfig.exit_labels`
    ) -> None:
        def labelled(
            metric_type: type, key: str, documentation: str, *more_labels: str, **options: object
        ) -> Gauge:
            return metric_types[metric_type](
                name=f"vllm:layerskip_{key}",
                documentation=documentation,
                labelnames=[*labelnames, *more_labels],
                **options,
            )

        def per_engine(metric_type: type, key: str, documentation: str, **options: object) -> dict:
            metric = labelled(metric_type, key, documentation, **options)
            return create_metric_per_engine(metric, per_engine_labelvalues)

        self._counters = {key: per_engine(Counter, key, text) for key, text in COUNTERS.items()}
        self._histograms = {
            key: per_engine(Histogram, key, text, buckets=TIME_BUCKETS)
            for key, text in HISTOGRAMS.items()
        }
        last = {"multiprocess_mode": "mostrecent"}  # of several API servers, as vLLM's own
        self._gauges = {key: per_engine(Gauge, key, text, **last) for key, text in GAUGES.items()}
        names = EXIT_LAYER, DRAFT_VOCAB
        rate = labelled(Gauge, EXIT_MATCH_RATE, EXIT_MATCH_RATE_TEXT, *names, **last)
        self._match_rates = {
            engine: [rate.labels(*values, str(layer), str(size)) for layer, size in exit_labels]
            for engine, values in per_engine_labelvalues.items()
        }

    def observe(self, transfer_stats_data: Mapping, engine_idx: int = 0) -> None:
        """Add one step of an engine; the signature is that of vLLM's connectors' metrics."""
        counted = transfer_stats_data[OPTIONS_KEY]
        for key, counters in self._counters.items():
            counters[engine_idx].inc(counted[key])
        for key, histograms in self._histograms.items():
            if key in counted:
                histograms[engine_idx].observe(counted[key])
        for key, gauges in self._gauges.items():
            if key in counted:
                gauges[engine_idx].set(counted[key])
        for gauge, rate in zip(
            self._match_rates[engine_idx], counted.get(EXIT_MATCH_RATE, ()), strict=False
        ):
            gauge.set(rate)
