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
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.attention.backends import triton_attn
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

CAPTURE_SIZES = [1, 2, 4, 8, 16]


class Replays(Counter):
    """How often each graph was replayed, by its descriptor."""


def emulate(monkeypatch, mode=CUDAGraphMode.FULL_DECODE_ONLY, is_async=False) -> Replays:
    """Let engines that start from here on capture graphs and use them."""
    replays = Replays()
    update = CpuPlatform.check_and_update_config.__func__

    def check_and_update_config(cls, vllm_config):
        update(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = is_async
        compilation = vllm_config.compilation_config
        compilation.cudagraph_mode = mode
        compilation.cudagraph_capture_sizes = list(CAPTURE_SIZES)
        compilation.max_cudagraph_capture_size = CAPTURE_SIZES[-1]

    def attention(cls, *args, **kwargs):
        return AttentionBackendEnum.TRITON_ATTN.get_path()

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

    warm_up = CPUWorker.compile_or_warm_up_model
    monkeypatch.setattr(
        CpuPlatform, "check_and_update_config", classmethod(check_and_update_config)
    )
    monkeypatch.setattr(CpuPlatform, "get_attn_backend_cls", classmethod(attention))
    monkeypatch.setattr(CpuPlatform, "get_global_graph_pool", lambda *_: None)
    monkeypatch.setattr(triton_attn, "MIN_LAUNCH_GRID_SIZE_2D", 1)  # fewer programs
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))  # tile sizes
    monkeypatch.setattr(CPUWorker, "compile_or_warm_up_model", compile_or_warm_up_model)
    monkeypatch.setattr(CudaGraphManager, "capture", partialmethod(_capture, replays=replays))
    return replays


def _capture(manager, create_forward_fn, _progress_bar_desc="", *, replays):
    for descs in manager._capture_descs.values():
        for desc in descs:
            if desc.cg_mode == CUDAGraphMode.FULL:
                create_forward_fn(desc, warmup=True)(CUDAGraphMode.NONE)
                forward = create_forward_fn(desc, warmup=False)
                forward(CUDAGraphMode.NONE)

                def replay(desc=desc, forward=forward):
                    replays[desc] += 1
                    forward(CUDAGraphMode.NONE)

                manager.graphs[desc] = SimpleNamespace(replay=replay)
    manager._graphs_captured = True
