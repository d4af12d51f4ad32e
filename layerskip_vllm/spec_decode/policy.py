"""Whether and how far to draft: K for the batch, and where each request stops."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from layerskip_vllm.config import LayerSkipConfig
from layerskip_vllm.spec_decode.draft_length import DraftLengthController
from layerskip_vllm.spec_decode.draft_stop import StopThreshold
from layerskip_vllm.spec_decode.drafts import Drafts


class DraftPolicy:
    """Learns from every step; without `adaptive` and `stop_drafting` it asks for all drafts."""

    def __init__(self, config: LayerSkipConfig) -> None:
        self.controller = DraftLengthController() if config.adaptive else None
        self.threshold = StopThreshold() if config.stop_drafting else None
        self._drafts: Drafts | None = None
        self._step_ended: float | None = None
        self._propose_started = 0.0

    @property
    def stop_below(self) -> float | None:
        """Probability below which a draft is cut off; None: never."""
        return None if self.threshold is None else self.threshold.value

    def verified(
        self,
        req_ids: Sequence[str],  # [num_reqs]
        num_computed: np.ndarray,  # [num_reqs], before the step
        sampled_token_ids: np.ndarray,  # [num_reqs, *], -1 beyond what was sampled
        num_rows: int | None,  # of the step's forward; None where it was more than decoding
    ) -> None:
        """Hear of a step whose tokens are sampled; to be called before the next propose."""
        now = time.perf_counter()
        if self.controller is not None and num_rows is not None and self._step_ended is not None:
            self.controller.verify_seconds.observe(num_rows, now - self._step_ended)
        drafts, self._drafts = self._drafts, None
        if drafts is not None:
            outcomes = drafts.outcomes(req_ids, num_computed, sampled_token_ids)
            if self.threshold is not None:
                self.threshold.observe(outcomes.probs, outcomes.is_match)
            if self.controller is not None:
                self.controller.outcomes.observe(
                    reached=len(outcomes.is_match),
                    matched=outcomes.num_submitted_matches,
                    drafted=int(drafts.num_drafted.sum()),
                    submitted=int(drafts.num_submitted.sum()),
                )
        self._step_ended = self._propose_started = now

    def num_drafts(self, batch_size: int, max_drafts: int) -> int:
        """K of the coming propose step, in [0, max_drafts], for `batch_size` drafting requests."""
        if self.controller is None or batch_size == 0:
            return max_drafts
        return self.controller.choose(batch_size, max_drafts)

    def proposed(self, drafts: Drafts) -> None:
        """Hear of a propose step's drafts; they are on the host, so its work is done."""
        self._step_ended = time.perf_counter()
        self._drafts = drafts
        if self.controller is not None:
            batch_size, num_steps = drafts.token_ids.shape
            seconds = (self._step_ended - self._propose_started) / num_steps
            self.controller.draft_seconds.observe(batch_size, seconds)
