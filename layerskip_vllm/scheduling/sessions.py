"""Sessions with streaming input: requests that go on with more input after their answer has ended.

vLLM takes the number of computed tokens for the end of what a session keeps of an answer. Without
speculation that is right: each step computes one token, and the last one is never computed. A step
that verifies drafts computes the whole accepted run, even if the answer ends inside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler as HostScheduler
    from vllm.v1.request import Request
else:
    HostScheduler = object


class SessionsMixin(HostScheduler):
    """Put before `Scheduler` or one of its subclasses."""

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
