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
        if any(lora_request.load_inplace for lora_request in lora_requests):
            self._adapters_changed()  # vLLM reads these anew in each step that runs them
        self._step_mapping = (prompt_lora_mapping, token_lora_mapping)
        super()._set_active_loras(*self._step_mapping, lora_requests, *args)

    def add_lora(self, lora_request: LoRARequest) -> bool:
        """Load an adapter as the host does. It may take the place of one whose requests run."""
        is_loaded = super().add_lora(lora_request)
        self._adapters_changed()
        return is_loaded

    def _adapters_changed(self) -> None:
        """To be overridden: what is left of the last step may be another adapter's."""
        raise NotImplementedError

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
