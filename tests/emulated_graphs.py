"""CUDA graphs without a GPU: what vLLM would capture is recorded as a function and called again.

It stands beside `tests/runner_v2.py`: kernels run under Triton's interpreter, those of vLLM's
Triton attention too, which reads its metadata from fixed buffers as a graph needs it. So batches,
padding, buffers and the choice of a graph are the real ones; only the replay runs Python again.
"""

from collections import Counter
from functools import partialmethod
from types import SimpleNamespace

import torch
from vllm.config.compilation import CUDAGraphMode
from vllm.forward_context import BatchDescriptor, get_forward_context
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.attention import selector
from vllm.v1.attention.backends import triton_attn
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu import cudagraph_utils
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager
from vllm.v1.worker.gpu.spec_decode.target_dependent_ar.cudagraph_utils import (
    SpeculatorBatchDescriptor,
)

from tests import runner_v2
from tests.recorded_operations import recorded

CAPTURE_SIZES = [1, 2, 4, 8, 16]


class Replays(Counter):
    """How often each graph was replayed, by its descriptor."""

    def __init__(self) -> None:
        super().__init__()
        self.records: dict | None = None
        """Where not None: what each replay did, by its descriptor."""
        self.piecewise: list[tuple[BatchDescriptor, dict]] = []
        """Each run of a piecewise graph: the descriptor that is its key, and the model's inputs."""

    def verify_lengths(self) -> set[int]:
        """Tokens of each request in the target's graphs that were replayed."""
        return {desc.uniform_token_count for desc in self if not _is_propose(desc)}

    def draft_lengths(self) -> set[int]:
        """K of the propose steps that were replayed."""
        return {desc.num_speculative_tokens for desc in self if _is_propose(desc)}


def _is_propose(desc) -> bool:
    return isinstance(desc, SpeculatorBatchDescriptor)


def emulate(monkeypatch, mode=CUDAGraphMode.FULL_DECODE_ONLY, is_async=False) -> Replays:
    """Let engines that start from here on capture graphs and use them."""
    replays = Replays()

    def change(vllm_config):
        vllm_config.scheduler_config.async_scheduling = is_async
        compilation = vllm_config.compilation_config
        compilation.cudagraph_mode = mode
        compilation.cudagraph_capture_sizes = list(CAPTURE_SIZES)
        compilation.max_cudagraph_capture_size = CAPTURE_SIZES[-1]

    def get_attn_backend_cls(cls, *args, **kwargs):
        return AttentionBackendEnum.TRITON_ATTN.get_path()

    def get_global_graph_pool(cls):
        return None

    def compile_or_warm_up_model(worker):
        times = warm_up(worker)
        runner = worker.model_runner
        runner.cudagraph_manager.capture(
            runner.model,
            runner.model_state,
            runner.input_buffers,
            runner.intermediate_tensors,
            runner.block_tables,
            runner.attn_groups,
            runner.kv_cache_config,
        )
        if runner.speculator is not None:
            runner.speculator.capture()
        return times

    class PiecewiseGraphs:
        """Stands in for vLLM's graphs of the parts between attentions: runs the whole model."""

        def __init__(self, model, vllm_config):
            self._model = model

        def __call__(self, **inputs):
            replays.piecewise.append((get_forward_context().batch_descriptor, inputs))
            return self._model(**inputs)

    if mode.has_piecewise_cudagraphs():
        monkeypatch.setenv("VLLM_USE_BREAKABLE_CUDAGRAPH", "1")
        monkeypatch.setattr(cudagraph_utils, "BreakableCUDAGraphWrapper", PiecewiseGraphs)
    warm_up = CPUWorker.compile_or_warm_up_model
    runner_v2.configure_after_vllm(monkeypatch, change)
    for method in (get_attn_backend_cls, get_global_graph_pool):
        monkeypatch.setattr(CpuPlatform, method.__name__, classmethod(method))
    chosen = selector._cached_get_attn_backend
    monkeypatch.setattr(selector, "_cached_get_attn_backend", chosen.__wrapped__)
    monkeypatch.setattr(triton_attn, "MIN_LAUNCH_GRID_SIZE_2D", 1)  # fewer programs
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))  # tile sizes
    monkeypatch.setattr(CPUWorker, "compile_or_warm_up_model", compile_or_warm_up_model)
    # Memory is profiled on GPUs, before there are KV blocks.
    monkeypatch.setattr(CPUWorker, "_should_warm_up_model", lambda _: True)
    monkeypatch.setattr(CudaGraphManager, "capture", partialmethod(_capture, replays=replays))
    return replays


def _capture(manager, create_forward_fn, _progress_bar_desc="", *, replays):
    for descs in manager._capture_descs.values():
        for desc in (desc for desc in descs if desc.cg_mode == CUDAGraphMode.FULL):
            forward = create_forward_fn(desc, warmup=False)
            if desc == descs[0]:
                forward(CUDAGraphMode.NONE)  # allocates what all graphs write to

            def replay(desc=desc, forward=forward):
                replays[desc] += 1
                if replays.records is None:
                    forward(CUDAGraphMode.NONE)
                else:
                    with recorded() as operations:
                        forward(CUDAGraphMode.NONE)
                    replays.records.setdefault(desc, []).append(operations)

            manager.graphs[desc] = SimpleNamespace(replay=replay)
    manager._graphs_captured = True
