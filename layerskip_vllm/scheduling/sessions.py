"""Sessions with streaming input: requests that go on with more input after their answer has ended.

vLLM 0.32 takes the number of computed tokens for the end of what a session keeps of an answer. In
plain decoding that is right: each step computes one token, and the last one is never computed. It
is wrong where a step has computed an accepted run and the answer ends inside it, and where a
preemption has left nothing computed. vLLM 0.33 has repaired both.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.core.sched.scheduler import Scheduler as HostScheduler
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request, StreamingUpdate
else:
    HostScheduler = object


class SessionsMixin(HostScheduler):
    """Put before `Scheduler` or one of its subclasses."""

    def __init__(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*args, **kwargs)
        self._continued: list[Request] = []
        """Sessions of which an answer has ended in the step."""

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        """Count no token as computed that follows an answer's end.

        The next input takes the place of the answer's last token, as in plain decoding. KV beyond
        it is overwritten, and no block with it is cached: vLLM caches blocks of known tokens only.
        """
        new_token_ids, is_stopped = super()._update_request_with_output(
            request, new_token_ids, is_stale
        )
        if is_stopped:
            # An asynchronous scheduler has placeholders for tokens that it has not seen yet; those
            # that were cut off are among them.
            num_computed = request.num_computed_tokens - request.num_output_placeholders
            request.num_computed_tokens -= max(0, num_computed - (request.num_tokens - 1))
        return new_token_ids, is_stopped

    def _update_request_as_session(self, session: Request, update: StreamingUpdate) -> None:
        """Keep all tokens of an answer but the last one, even if a preemption has left none of
        them computed.
        """
        num_computed = session.num_computed_tokens
        session.num_computed_tokens = session.num_tokens - 1
        super()._update_request_as_session(session, update)
        session.num_computed_tokens = num_computed

    def _handle_stopped_request(self, request: Request) -> bool:
        is_finished = super()._handle_stopped_request(request)
        if not is_finished:
            self._continued.append(request)
        return is_finished

    def update_from_output(  # type: ignore[no-untyped-def]
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ):
        """Put sessions back that vLLM 0.32 removes from its queues: those whose last tokens came
        after they were preempted.
        """
        self._continued = []
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for session in self._continued:
            queued = (*self.waiting, *self.kv_holding_waiting)
            is_queued = any(request is session for request in queued)
            if not is_queued and not session.is_finished():
                self._enqueue_waiting_request(session)
        return outputs
