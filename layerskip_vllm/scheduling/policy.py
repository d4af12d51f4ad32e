"""Whether and how far to draft: K for the batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from layerskip_vllm.config import LayerSkipConfig
from layerskip_vllm.scheduling.draft_length import DraftLengthController
from layerskip_vllm.spec_decode.drafts import Drafts


class DraftPolicy:
    """Learns from every step; without `adaptive` it asks for all drafts.

    Tensor-parallel ranks hear of the same tokens but measure different times, and must draft alike.
    """

    def __init__(
        self,
        config: LayerSkipConfig,
        agree: Callable[[Sequence[float]], Sequence[float]] = lambda values: values,
    ) -> None:
        """Start without knowledge.

        Args:
            config: Whether K is chosen.
            agree: Makes all ranks' numbers the first rank's; each of them calls it.
        """
        self.is_adaptive = config.adaptive
        self._agree = agree
        self.controller = DraftLengthController()
        self._drafts: Drafts | None = None
        self._step_ended: float | None = None
        self._propose_started = 0.0

    def verified(
        self,
        req_ids: Sequence[str],  # [num_reqs]
        num_computed: np.ndarray,  # [num_reqs], before the step
        sampled_token_ids: np.ndarray,  # [num_reqs, *], -1 beyond what was sampled
        num_rows: int | None,  # of the step's forward; None where it was more than decoding
    ) -> None:
        """Hear of a step whose tokens are sampled; to be called before the next propose."""
        if not self.is_adaptive:
            return
        now = time.perf_counter()
        if num_rows is not None and self._step_ended is not None:
            self.controller.verify_seconds.observe(num_rows, now - self._step_ended)
        drafts, self._drafts = self._drafts, None
        if drafts is not None:
            self.controller.outcomes.observe(
                drafts.outcomes(req_ids, num_computed, sampled_token_ids)
            )
        self._step_ended = self._propose_started = now

    def num_drafts(
        self,
        limits: np.ndarray,  # [num_reqs], int64: most drafts of each request that decodes
    ) -> int:
        """Most drafts of the coming propose step, in [0, limits.max()], 0 to make none at all."""
        max_drafts = int(limits.max(initial=0))
        if not self.is_adaptive or max_drafts == 0:
            return max_drafts
        return int(*self._agree([self.controller.choose(limits)]))

    def proposed(self, drafts: Drafts) -> None:
        """Hear of a propose step's drafts; they are on the host, so its work is done."""
        if not self.is_adaptive:
            return
        self._step_ended = time.perf_counter()
        self._drafts = drafts
        batch_size, num_steps = drafts.token_ids.shape
        seconds = (self._step_ended - self._propose_started) / num_steps
        self.controller.draft_seconds.observe(batch_size, seconds)
