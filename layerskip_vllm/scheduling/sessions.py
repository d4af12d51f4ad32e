"""Sessions with streaming input: requests that go on with more input after their answer has ended.

vLLM 0.32 takes the number of computed tokens for the end of what a session keeps of an answer. In
plain decoding that is right: each step computes one token, and the last one is never computed. It
is wrong where a step has computed an accepted run and the answer ends inside it, and where a
preemption has left nothing computed. vLLM 0.33 has repaired both.

vLLM checks the length of each input alone. One that takes its session past `max_model_len` ends
the engine, with or without speculation. Here its answer is an error, and the session goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.logger import init_logger
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import RequestStatus

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.core.sched.scheduler import Scheduler as HostScheduler
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request, StreamingUpdate
else:
    HostScheduler = object

logger = init_logger(f"vllm.{__name__}")


class SessionsMixin(HostScheduler):
    """Put before `Scheduler` or one of its subclasses."""

    def __init__(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super().__init__(*args, **kwargs)
        self._continued: list[Request] = []
        """Sessions of which an answer has ended in the step."""
        self._refused: list[Request] = []
        """The session of each input that is too long, until the next step answers it."""

    def add_request(self, request: Request) -> None:
        """Refuse an input that is too long for a session that waits for it."""
        session = self.requests.get(request.request_id)
        is_awaited = (
            session is not None
            and session.status == RequestStatus.WAITING_FOR_STREAMING_REQ
            and request.resumable
        )
        if not (is_awaited and self._refuse_if_too_long(session, request)):
            super().add_request(request)

    def _refuse_if_too_long(self, session: Request, update: Request | StreamingUpdate) -> bool:
        """Refuse an input that leaves no room for an answer; returns whether it does.

        The next step answers it by an error.
        """
        # It takes the place of the last token.
        num_tokens = session.num_tokens - 1 + len(update.prompt_token_ids or ())
        if num_tokens < self.max_model_len:
            return False
        logger.warning(
            "Session %s: an input is refused that makes it %d tokens long, without its answer; "
            "max_model_len=%d",
            session.request_id,
            num_tokens,
            self.max_model_len,
        )
        self._refused.append(session)
        return True

    def has_requests(self) -> bool:
        """Whether a step is due: also one that only answers refused inputs."""
        return bool(self._refused) or super().has_requests()

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
        inputs = request.streaming_queue
        while inputs and inputs[0] is not None and self._refuse_if_too_long(request, inputs[0]):
            inputs.popleft()
        is_finished = super()._handle_stopped_request(request)
        if not is_finished:
            self._continued.append(request)
        return is_finished

    def update_from_output(  # type: ignore[no-untyped-def]
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ):
        """Put sessions back that vLLM 0.32 removes from its queues: those whose last tokens came
        after they were preempted. Answer refused inputs.
        """
        self._continued = []
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for session in self._continued:
            queued = (*self.waiting, *self.kv_holding_waiting)
            is_queued = any(request is session for request in queued)
            if not is_queued and not session.is_finished():
                self._enqueue_waiting_request(session)
        for session in self._refused:
            answer = EngineCoreOutput(session.request_id, [], finish_reason=FinishReason.ERROR)
            outputs.setdefault(session.client_index, EngineCoreOutputs()).outputs.append(answer)
        self._refused = []
        return outputs
