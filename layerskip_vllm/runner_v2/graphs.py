"""CUDA graphs of the LayerSkip cycle: which are captured, for which batch sizes and K.

Verify and propose are one graph each. Batch sizes are vLLM's capture sizes, so what is captured is
bounded by their number times that of `captured_draft_lengths`.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import torch
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, ModelCudaGraphManager
from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.cudagraph_utils import (
    SpeculatorBatchDescriptor,
    SpeculatorCudaGraphManager,
)

if TYPE_CHECKING:
    from torch import nn

    from layerskip_vllm.runner_v2.model_state import LayerSkipModelState

MAX_CAPTURED_DRAFTS = 8
"""Where the policy chooses K, each K up to this has graphs, as has the engine's own. Another
runs without; the policy measures what each K takes, so it seldom chooses that one."""


def captured_draft_lengths(vllm_config: VllmConfig) -> list[int]:
    """The K that have graphs, longest first; K = 0, plain decoding, is not among them."""
    config = vllm_config.speculative_config
    lengths = {vllm_config.num_speculative_tokens}
    lengths |= {k for *_, k in config.num_speculative_tokens_per_batch_size or [] if k > 0}
    if config.layerskip.adaptive:
        lengths |= set(range(1, min(max(lengths), MAX_CAPTURED_DRAFTS + 1)))
    return sorted(lengths, reverse=True)


class VerifyGraphManager(ModelCudaGraphManager):
    """vLLM's manager of the target's graphs, for every K and for verification that resumes.

    vLLM captures the query lengths that its own schedule of K names; ours is chosen step by step.
    """

    decode_query_len: int

    def _init_candidates(self) -> None:
        """Unite what vLLM makes of each query length; graphs of one length come first."""
        longest = self.decode_query_len
        to_capture: defaultdict[CUDAGraphMode, dict[BatchExecutionDescriptor, None]]
        candidates: defaultdict[tuple[int, int], dict[BatchExecutionDescriptor, None]]
        to_capture, candidates = defaultdict(dict), defaultdict(dict)
        for num_drafts in [*captured_draft_lengths(self.vllm_config), 0]:
            self._candidates: dict[tuple[int, int], list[BatchExecutionDescriptor]] = {}
            self._capture_descs: dict[CUDAGraphMode, list[BatchExecutionDescriptor]] = {}
            self.decode_query_len = num_drafts + 1
            super()._init_candidates()
            for mode, descs in self._capture_descs.items():
                to_capture[mode].update(dict.fromkeys(descs))
            for key, descs in self._candidates.items():
                candidates[key].update(dict.fromkeys(descs))
        self.decode_query_len = longest
        self._capture_descs = {
            mode: sorted(descs, key=lambda desc: -desc.num_tokens)
            for mode, descs in to_capture.items()
        }
        self._candidates = {
            key: sorted(descs, key=lambda desc: desc.cg_mode != CUDAGraphMode.FULL)
            for key, descs in candidates.items()
        }

    def capture(  # type: ignore[no-untyped-def]
        self, model: nn.Module, model_state: LayerSkipModelState, *args, **kwargs
    ) -> None:
        """Capture mode by mode: shapes alone do not tell a graph that resumes from one that does
        not, since a piecewise graph of mixed batches may have the shape of a decode batch.
        """
        to_capture = self._capture_descs
        for mode in (CUDAGraphMode.PIECEWISE, CUDAGraphMode.FULL):
            if mode in to_capture:
                self._capture_descs = {mode: to_capture[mode]}
                with model_state.capturing(mode):
                    super().capture(model, model_state, *args, **kwargs)
        self._capture_descs = to_capture


class ProposeGraphManager(SpeculatorCudaGraphManager):
    """vLLM's manager of draft graphs, for every K: it captures those of its schedule alone."""

    def __init__(
        self, vllm_config: VllmConfig, device: torch.device, cudagraph_mode: CUDAGraphMode
    ) -> None:
        super().__init__(vllm_config, device, cudagraph_mode, decode_query_len=1)
        descriptors: dict = vars(self)["_capture_descs"]
        self._capture_descs = {
            mode: [
                SpeculatorBatchDescriptor(**vars(desc), num_speculative_tokens=num_drafts)
                for desc in descs
                for num_drafts in captured_draft_lengths(vllm_config)
            ]
            for mode, descs in descriptors.items()
        }
