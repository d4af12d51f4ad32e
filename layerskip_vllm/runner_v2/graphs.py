"""CUDA graphs of a propose step: one for each captured batch size and each K."""

from __future__ import annotations

import torch
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.cudagraph_utils import (
    SpeculatorBatchDescriptor,
    SpeculatorCudaGraphManager,
)


class ProposeGraphManager(SpeculatorCudaGraphManager):
    """vLLM's manager of draft graphs, for all K: it captures those of its schedule alone.

    Batch sizes are vLLM's capture sizes, so memory is bounded by K times their number.
    """

    def __init__(
        self, vllm_config: VllmConfig, device: torch.device, cudagraph_mode: CUDAGraphMode
    ) -> None:
        super().__init__(vllm_config, device, cudagraph_mode, decode_query_len=1)
        descriptors: dict = vars(self)["_capture_descs"]
        self._capture_descs = {
            mode: [
                SpeculatorBatchDescriptor(**vars(desc), num_speculative_tokens=num_drafts)
                for desc in descs
                for num_drafts in range(vllm_config.num_speculative_tokens, 0, -1)
            ]
            for mode, descs in descriptors.items()
        }
