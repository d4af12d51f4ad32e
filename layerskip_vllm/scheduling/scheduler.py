"""vLLM's schedulers, choosing in each step which exit drafts how many tokens after it.

The scheduler runs in one process, and every rank on every host follows what it schedules. So E and
K are decided here, from what a scheduler sees: the time between steps, how many drafts were
accepted, and now and then what each exit would have drafted.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import RequestStatus

from layerskip_vllm.config import OPTIONS_KEY
from layerskip_vllm.scheduling.draft_order import DraftOrder, attach, draft_order_of
from layerskip_vllm.scheduling.health import AcceptanceMonitor
from layerskip_vllm.scheduling.limits import max_drafts
from layerskip_vllm.scheduling.policy import DraftPolicy
from layerskip_vllm.scheduling.sessions import SessionsMixin
from layerskip_vllm.spec_decode.draft_lengths import captured_draft_lengths
from layerskip_vllm.telemetry import (
    DRAFT_VOCAB,
    EXIT_LAYER,
    EXIT_MATCH_RATE,
    EXIT_MATCHES,
    NUM_DRAFTS,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.metrics.stats import SpecDecodingStats
    from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
    from vllm.v1.request import Request, StreamingUpdate


class DraftingMixin(SessionsMixin):
    """Put before `Scheduler` or one of its subclasses."""

    def __init__(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*args, **kwargs)
        # Propose writes the early layers' KV of t and of every draft: K + 1 positions.
        self.num_lookahead_tokens += 1
        layerskip = self.vllm_config.speculative_config.layerskip
        self._exit_labels = layerskip.exit_labels
        self._on_runner_v2 = self.vllm_config.speculative_config.on_runner_v2
        reasoning = self.vllm_config.reasoning_config
        end_token_ids = reasoning.reasoning_end_token_ids if reasoning is not None else None
        self._num_thinking_end_tokens = len(end_token_ids or ())
        captured = captured_draft_lengths(self.vllm_config) if self._on_runner_v2 else None
        self.policy = DraftPolicy(layerskip, self.num_spec_tokens, captured)
        self.acceptance = AcceptanceMonitor(layerskip)
        self._limits: dict[str, int] = {}
        self._last_limits: Mapping[str, int] = {}
        self._num_drafted: list[int] = []
        self._num_accepted: list[int] = []
        self._last_step: tuple[float, DraftOrder] | None = None
        """When the last step ended, and what it was to propose."""

    def add_request(self, request: Request) -> None:
        """Read once how many drafts the request may have in any step."""
        is_new = request.request_id not in self.requests  # else it is a session's next input
        super().add_request(request)
        if is_new:
            self._read_limit(request)

    def _update_request_as_session(self, session: Request, update: StreamingUpdate) -> None:
        """Read the limit again: each input of a session may bring its own parameters."""
        super()._update_request_as_session(session, update)
        self._read_limit(session)

    def _read_limit(self, request: Request) -> None:
        params = request.sampling_params
        if params is None:
            return
        self._limits[request.request_id] = max_drafts(
            params, self.num_spec_tokens, self._num_thinking_end_tokens
        )

    def _free_request(self, request: Request, *args, **kwargs):  # type: ignore[no-untyped-def]
        self._limits.pop(request.request_id, None)
        return super()._free_request(request, *args, **kwargs)

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        """Choose E and K, before the host makes placeholders for an asynchronous step's drafts."""
        most = scheduler_output.num_spec_tokens_to_schedule
        limits = self._draft_limits(scheduler_output.num_scheduled_tokens, most)
        choice = self.policy.choose(list(limits.values()))
        num_drafts = choice.num_drafts
        scheduler_output.num_spec_tokens_to_schedule = num_drafts
        scheduled = scheduler_output.scheduled_cached_reqs
        order = DraftOrder(
            limits={req_id: limit for req_id, limit in limits.items() if limit < num_drafts},
            num_drafts=num_drafts,
            batch_size=len(limits),
            is_decode=bool(limits)
            and len(limits) == len(scheduled.req_ids)
            and not scheduled.resumed_req_ids
            and not scheduler_output.scheduled_new_reqs
            and len(limits) == len(scheduler_output.num_scheduled_tokens),
            exit_index=choice.exit_index,
            observes=choice.observes,
        )
        attach(scheduler_output, order)
        super()._update_after_schedule(scheduler_output)
        # An asynchronous scheduler has made placeholders for K drafts of each by now.
        self._last_limits = order.limits
        for req_id, limit in order.limits.items():
            request = self.requests[req_id]
            request.spec_token_ids = request.spec_token_ids[:limit]

    def update_draft_token_ids(self, draft_token_ids: DraftTokenIds) -> None:
        """Verify no more drafts of a request than it may have: runner V2 drafts K for each."""
        pairs = zip(draft_token_ids.req_ids, draft_token_ids.draft_token_ids, strict=True)
        draft_token_ids.draft_token_ids = [
            token_ids[: self._limit_after_step(req_id, len(token_ids))]
            for req_id, token_ids in pairs
        ]
        super().update_draft_token_ids(draft_token_ids)

    def _limit_after_step(self, req_id: str, num_drafts: int) -> int:
        """Most drafts of a request, now that the step has shown how many tokens it yields."""
        limit = min(num_drafts, self._last_limits.get(req_id, num_drafts))
        request = self.requests.get(req_id)
        if request is None:  # it has ended
            return limit
        if request.status != RequestStatus.RUNNING:
            return 0  # its answer has ended: a session's next input follows, not a draft
        return max(0, min(limit, request.max_tokens - request.num_output_tokens - 1))

    def _draft_limits(self, num_scheduled_tokens: Mapping[str, int], most: int) -> dict[str, int]:
        """Most drafts after the step of each request that decodes then, by request id."""
        limits = {}
        for req_id, num_scheduled in num_scheduled_tokens.items():
            request = self.requests[req_id]
            num_known = request.num_tokens + request.num_output_placeholders
            if request.num_computed_tokens + num_scheduled < num_known:
                continue  # in the middle of its prompt
            # The step yields a token at least, and none is drafted after the last one.
            room = request.max_tokens - request.num_output_tokens - 2
            limits[req_id] = max(0, min(most, self._limits.get(req_id, most), room))
        return limits

    def update_from_output(  # type: ignore[no-untyped-def]
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ):
        """Learn what the step took and which drafts were accepted."""
        now = time.perf_counter()
        order = draft_order_of(scheduler_output)
        exit_counts = self._exchange(model_runner_output, order)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        ended, verified = self._last_step or (now, order)
        # Runner V2 returns a step's tokens before it drafts: from one step's tokens to the next it
        # takes to propose what that one verifies.
        proposed = verified if self._on_runner_v2 else order
        if self._last_step is not None and order.is_decode and not order.observes:
            self.policy.observe_step(
                order.batch_size, verified.choice, proposed.choice, now - ended
            )
        # A request that a step left out may verify what an earlier order made; it is rare.
        self.policy.observe_outcomes(
            verified.exit_index, self._num_drafted, self._num_accepted, exit_counts
        )
        self._last_step = (now, order)
        self.acceptance.observe(sum(self._num_drafted), sum(self._num_accepted))
        self._num_drafted, self._num_accepted = [], []
        return outputs

    def _exchange(
        self, model_runner_output: ModelRunnerOutput, order: DraftOrder
    ) -> list[list[int]]:
        """Take what an observing step has counted out of the step's numbers, which go on to the
        metrics, and put the last choice in.

        Returns:
            [reached, matched] of each exit; empty where no step observed. On runner V2 they may
            come with a later step's numbers.
        """
        of_connectors = model_runner_output.ec_connector_output
        if of_connectors is None or of_connectors.ec_connector_stats is None:
            return []
        numbers = of_connectors.ec_connector_stats.data[OPTIONS_KEY]
        exit_counts = numbers.pop(EXIT_MATCHES, [])
        numbers[EXIT_LAYER], numbers[DRAFT_VOCAB] = self._exit_labels[order.exit_index]
        numbers[NUM_DRAFTS] = order.num_drafts
        numbers[EXIT_MATCH_RATE] = [outcomes.match_rate for outcomes in self.policy.outcomes]
        return exit_counts

    def make_spec_decoding_stats(
        self,
        spec_decoding_stats: SpecDecodingStats | None,
        num_draft_tokens: int,
        num_accepted_tokens: int,
        num_invalid_spec_tokens: dict[str, int] | None,
        request_id: str,
    ) -> SpecDecodingStats | None:
        """Count a request's drafts; vLLM calls this for each that had some verified."""
        num_invalid = (num_invalid_spec_tokens or {}).get(request_id, 0)
        if num_draft_tokens > num_invalid:
            self._num_drafted.append(num_draft_tokens - num_invalid)
            self._num_accepted.append(num_accepted_tokens)
        return super().make_spec_decoding_stats(
            spec_decoding_stats,
            num_draft_tokens=num_draft_tokens,
            num_accepted_tokens=num_accepted_tokens,
            num_invalid_spec_tokens=num_invalid_spec_tokens,
            request_id=request_id,
        )


class LayerSkipScheduler(DraftingMixin, Scheduler):
    """vLLM's scheduler with the policy."""


class LayerSkipAsyncScheduler(DraftingMixin, AsyncScheduler):
    """vLLM's scheduler of asynchronous steps with the policy."""


def make_scheduler(vllm_config: VllmConfig, **arguments) -> DraftingMixin:  # type: ignore[no-untyped-def]
    """Make the scheduler for synchronous or asynchronous steps, which vLLM decides last of all."""
    is_async = vllm_config.scheduler_config.async_scheduling
    scheduler = LayerSkipAsyncScheduler if is_async else LayerSkipScheduler
    return scheduler(vllm_config=vllm_config, **arguments)
