"""Start vLLM engines, in this process, and note how vLLM configured them."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.gpu.records import EngineStart

if TYPE_CHECKING:
    from layerskip_vllm.measure.engine import VllmEngine

RUNNER_MODULES = ("vllm.v1.worker.gpu_model_runner", "vllm.v1.worker.gpu.model_runner")
"""Of vLLM's model runners V1 and V2."""

ON_A_GPU: dict[str, object] = {
    # It is slow at each start; each measurement warms up by itself.
    "kernel_config": {"enable_jit_warmup": False},
    # The KV cache's size is given; this only has to be free when an engine starts.
    "gpu_memory_utilization": 0.4,
}
"""Arguments of every engine that runs on a GPU."""


def runner_variables(runner: str | None) -> dict[str, str]:
    """Environment variables that choose model runner V1 or V2; None leaves it to vLLM."""
    return {} if runner is None else {"VLLM_USE_V2_MODEL_RUNNER": {"V1": "0", "V2": "1"}[runner]}


def common_variables() -> dict[str, str]:
    """Environment variables of all jobs, beside those that the user has set."""
    variables = {
        # One process, so that the check can read its runner.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if importlib.util.find_spec("flashinfer") is None:
        variables["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
    return variables


class StartedEngine:
    """An engine and how it started.

    Attributes:
        engine: It runs in this process.
        start: vLLM's configuration from the arguments.
    """

    def __init__(self, job: str, name: str, arguments: Mapping[str, object]) -> None:
        """Start it.

        Args:
            job: Name of the job.
            name: Of the engine in the job.
            arguments: Of `vllm.LLM`.
        """
        from vllm.compilation.counter import compilation_counter

        from layerskip_vllm.measure.engine import VllmEngine

        started = time.perf_counter()
        num_graphs = compilation_counter.num_cudagraph_captured
        with _graph_memory() as graph_bytes:
            self.engine = VllmEngine(arguments)
        config = self.engine.engine.vllm_config
        self.start = EngineStart(
            job=job,
            engine=name,
            runner=_runner_name(self.engine),
            attention_backend=_attention_backend(self.engine),
            async_scheduling=bool(config.scheduler_config.async_scheduling),
            cudagraph_mode=config.compilation_config.cudagraph_mode.name,
            num_graphs=max(compilation_counter.num_cudagraph_captured - num_graphs, 0),
            full_graphs=_full_graphs(self.engine),
            graph_bytes=sum(graph_bytes) if graph_bytes else None,
            start_s=time.perf_counter() - started,
        )

    def close(self) -> None:
        """End the engine and free its memory for the next one."""
        import torch

        self.engine.close()
        del self.engine
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@contextmanager
def _graph_memory() -> Generator[list[int]]:
    """Collect what `capture_model` of any of vLLM's runners returns: bytes."""
    captured: list[int] = []
    originals = []
    for name in RUNNER_MODULES:
        try:
            runner_class = importlib.import_module(name).GPUModelRunner
        except ImportError:  # V2 needs Triton
            continue
        originals.append((runner_class, runner_class.capture_model))
        runner_class.capture_model = _recorded(runner_class.capture_model, captured)
    try:
        yield captured
    finally:
        for runner_class, original in originals:
            runner_class.capture_model = original


def _recorded(capture_model, captured: list[int]):  # type: ignore[no-untyped-def]
    def recorded(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        num_bytes = capture_model(self, *args, **kwargs)
        if num_bytes:
            captured.append(int(num_bytes))
        return num_bytes

    return recorded


def _runner_name(engine: VllmEngine) -> str:
    runner_class = type(engine.runner)
    return f"{runner_class.__module__}.{runner_class.__name__}"


def _attention_backend(engine: VllmEngine) -> str:
    groups = [group for groups in engine.runner.attn_groups for group in groups]
    return ", ".join(sorted({group.backend.get_name() for group in groups}))


def _full_graphs(engine: VllmEngine) -> dict[str, int]:
    """Captured FULL graphs of model runner V2, by owner; empty for V1."""
    counts: dict[str, int] = {}
    owners = {"target": engine.runner, "propose": getattr(engine.runner, "speculator", None)}
    for label, owner in owners.items():
        for value in vars(owner).values() if owner is not None else ():
            graphs = getattr(value, "graphs", None)
            if isinstance(graphs, dict):
                counts[label] = counts.get(label, 0) + len(graphs)
    return counts
