"""CUDA graphs of the LayerSkip cycle: which are captured, for which batch sizes and K.

Verify and propose are one graph each. Batch sizes are vLLM's capture sizes, so what is captured is
bounded by their number times that of `captured_draft_lengths` times that of the exits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from vllm.config import VllmConfig
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, ModelCudaGraphManager
from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.cudagraph_utils import (
    SpeculatorBatchDescriptor,
    SpeculatorCudaGraphManager,
)

from layerskip_vllm.spec_decode.draft_lengths import captured_draft_lengths

if TYPE_CHECKING:
    from torch import nn

    from layerskip_vllm.runner_v2.model_state import LayerSkipModelState


@dataclass(frozen=True)
class VerifyDescriptor(BatchExecutionDescriptor):
    """A batch that resumes after another exit layer than the first."""

    exit_index: int = 0
    """Of the layer, in `exit_layers`."""


@dataclass(frozen=True)
class ProposeDescriptor(SpeculatorBatchDescriptor):
    """A propose at another exit than the first."""

    exit_index: int = 0
    """In `exits`: two of them may share a layer and differ by the head."""


def at_exit(desc: BatchExecutionDescriptor, exit_index: int) -> BatchExecutionDescriptor:
    """Name the graph of another exit for the same batch; each exit has the same batches."""
    if exit_index == 0 or desc.cg_mode != CUDAGraphMode.FULL:
        return desc
    kind = ProposeDescriptor if isinstance(desc, SpeculatorBatchDescriptor) else VerifyDescriptor
    return kind(**vars(desc), exit_index=exit_index)


def _by_exit(descs: list[BatchExecutionDescriptor]) -> dict[int, list[BatchExecutionDescriptor]]:
    grouped: defaultdict[int, list[BatchExecutionDescriptor]] = defaultdict(list)
    for desc in descs:
        grouped[getattr(desc, "exit_index", 0)].append(desc)
    return grouped


class VerifyGraphManager(ModelCudaGraphManager):
    """vLLM's manager of the target's graphs, for every K and for verification that resumes.

    vLLM captures the query lengths that its own schedule of K names; ours is chosen step by step.
    """

    decode_query_len: int
    exit_index = 0
    """From which exit's states the step that is being prepared resumes, if it does."""
    observes = False
    """Whether that step looks at every exit, which no graph does."""

    def resume_at_every_exit(self, num_exits: int) -> None:
        """Capture the graphs of batches with drafts, which resume, for other exits too."""
        mode = CUDAGraphMode.FULL
        if descs := self._capture_descs.get(mode):
            uniform = [desc for desc in descs if (desc.uniform_token_count or 1) > 1]
            others = [at_exit(desc, index) for index in range(1, num_exits) for desc in uniform]
            self._capture_descs[mode] = descs + others

    def dispatch(self, num_reqs: int, num_tokens: int, *args, **kwargs) -> BatchExecutionDescriptor:  # type: ignore[no-untyped-def]
        """Find a graph as the host does, of the exit from which the step resumes."""
        if self.observes:
            return BatchExecutionDescriptor(CUDAGraphMode.NONE, num_tokens, num_reqs)
        desc = super().dispatch(num_reqs, num_tokens, *args, **kwargs)
        resumes = (desc.uniform_token_count or 1) > 1
        return at_exit(desc, self.exit_index) if resumes else desc

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
        self._thin_out()

    def _thin_out(self) -> None:
        """Keep about as many batch sizes with drafts as plain decoding has.

        vLLM makes one of each of its sizes in tokens: several times as many, with less padding. And
        where a schedule has several K, it lets graphs of one hide those of another.
        """
        descs = self._capture_descs.get(CUDAGraphMode.FULL, [])
        sizes = sorted(self.compilation_config.cudagraph_capture_sizes or [])
        kept: dict[int, list[BatchExecutionDescriptor]] = {}
        for length in {desc.uniform_token_count for desc in descs} - {None, 1}:
            uniform = [desc for desc in descs[::-1] if desc.uniform_token_count == length]
            kept[length] = [
                next((desc for desc in uniform if desc.num_reqs >= size), uniform[-1])
                for size in sizes
            ]
        if not kept:
            return
        self._capture_descs[CUDAGraphMode.FULL] = [
            desc for desc in descs if desc in kept.get(desc.uniform_token_count, [desc])
        ]
        for (num_tokens, num_loras), listed in self._candidates.items():
            fitting = (
                next((desc for desc in of_length if desc.num_tokens >= num_tokens), None)
                for of_length in kept.values()
            )
            others = [desc for desc in listed if desc.uniform_token_count not in kept]
            self._candidates[num_tokens, num_loras] = [*filter(None, fitting), *others]

    def capture(  # type: ignore[no-untyped-def]
        self, model: nn.Module, model_state: LayerSkipModelState, *args, **kwargs
    ) -> None:
        """Capture mode by mode: shapes alone do not tell a graph that resumes from one that does
        not, since a piecewise graph of mixed batches may have the shape of a decode batch.
        """
        to_capture = self._capture_descs
        for mode in (CUDAGraphMode.PIECEWISE, CUDAGraphMode.FULL):
            for exit_index, descs in _by_exit(to_capture.get(mode, [])).items():
                self._capture_descs = {mode: descs}
                with model_state.capturing(mode, exit_index):
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
                if desc.num_tokens <= self._most_reqs(num_drafts)
            ]
            for mode, descs in descriptors.items()
        }
        self._num_exits = len(vllm_config.speculative_config.layerskip.exits)

    def _most_reqs(self, num_drafts: int) -> int:
        """Of the largest propose that is captured: where K is chosen, one whose drafts a graph
        verifies. Larger batches seldom draft so many.
        """
        sizes = self.compilation_config.cudagraph_capture_sizes or [0]
        most_verified = max(sizes) // (num_drafts + 1)
        if not self.vllm_config.speculative_config.layerskip.adaptive:
            return max(sizes)
        return min((size for size in sizes if size >= most_verified), default=max(sizes))

    def capture(self, forward_fn: Callable, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        """Capture every exit's graphs; `forward_fn` takes the exit's index."""
        of_first = self._capture_descs
        for index in range(self._num_exits):
            self._capture_descs = {
                mode: [at_exit(desc, index) for desc in descs] for mode, descs in of_first.items()
            }
            super().capture(partial(forward_fn, exit_index=index), *args, **kwargs)
        self._capture_descs = of_first
