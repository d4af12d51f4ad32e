"""Which LoRA adapter each row of a forward runs with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner as HostRunner
else:
    HostRunner = object


class AdapterSwitchMixin(HostRunner):
    """Lets a part of a step run on rows of its own, each with its request's adapter.

    vLLM maps rows to adapters once a step, for one forward over all scheduled tokens, which is what
    the remaining layers get. Early layers run on the fresh tokens alone, and a draft step on one
    token a request.
    """

    def _set_active_loras(
        self,
        prompt_lora_mapping: tuple[int, ...],  # [num_logits]: adapter id, 0 for none
        token_lora_mapping: tuple[int, ...],  # [num_tokens]
        lora_requests: set[LoRARequest],
        *args: object,
    ) -> None:
        """Remember the step's mapping, which is set again after a part of it has run."""
        self._step_mapping = (prompt_lora_mapping, token_lora_mapping)
        super()._set_active_loras(*self._step_mapping, lora_requests, *args)

    @contextmanager
    def adapters_of(
        self,
        rows: np.ndarray,  # [num_rows], int64, into the runner's batch
    ) -> Iterator[None]:
        """Run forwards of `num_rows` rows, and their logits, with these requests' adapters.

        No adapter is named anew: the step has loaded them, and vLLM would load those again that
        were put in the place of another (`load_inplace`).
        """
        if not self.lora_config:
            yield
            return
        adapter_ids = tuple(self.input_batch.request_lora_mapping[rows])
        super()._set_active_loras(adapter_ids, adapter_ids, set())
        try:
            yield
        finally:
            super()._set_active_loras(*self._step_mapping, set())
