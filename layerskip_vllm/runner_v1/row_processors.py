"""vLLM's logits processors, over rows instead of requests."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING

import torch
from vllm.utils.torch_utils import PIN_MEMORY
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessors, build_logitsprocs

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.worker.gpu_input_batch import CachedRequestState


class RowProcessors:
    """Those of plain decoding: `min_tokens`, `logit_bias` and `min_p`.

    They learn of requests that join and leave. A row joins as a request that has emitted the drafts
    before it, and leaves after the step.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, max_num_rows: int) -> None:
        plain = copy(vllm_config)
        plain.speculative_config = None  # with one, vLLM leaves out two of the three
        plain.scheduler_config = copy(vllm_config.scheduler_config)
        plain.scheduler_config.max_num_seqs = max_num_rows
        self._processors = build_logitsprocs(plain, device, PIN_MEMORY, is_pooling_model=False)
        self._rows: set[int] = set()

    def of_step(
        self, requests: Sequence[CachedRequestState], drafts: Sequence[list[int]]
    ) -> LogitsProcessors:
        """Replace the rows of the last step by those of this one.

        Args:
            requests: Of the batch, in order.
            drafts: [num_reqs]: those that the step verifies.
        """
        joining, row = [], 0
        for request, draft in zip(requests, drafts, strict=True):
            if _is_processed(request):
                joining += [
                    (
                        row + k,
                        request.sampling_params,
                        request.prompt_token_ids,
                        request.output_token_ids + draft[:k],
                    )
                    for k in range(len(draft) + 1)
                ]
            row += len(draft) + 1
        rows = {row for row, *_ in joining}
        if joining or self._rows:
            # vLLM removes rows after it has added others: one in both would be lost.
            update = BatchUpdate(row, list(self._rows - rows), joining, [])
            for processor in self._processors.all:
                processor.update_state(update)
        self._rows = rows
        return self._processors


def _is_processed(request: CachedRequestState) -> bool:
    """Whether any processor changes the request's logits, so that most batches cost nothing."""
    params = request.sampling_params
    is_too_short = len(request.output_token_ids) < params.min_tokens
    return is_too_short or bool(params.logit_bias) or params.min_p > 0
