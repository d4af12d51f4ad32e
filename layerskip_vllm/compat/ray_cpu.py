"""Ray workers on CPU, for the hook `every_process/ray_executor.py`. Importing this imports Ray.

vLLM 0.32 (`vllm/v1/executor/ray_executor_v2.py`) asks Ray for each actor's accelerators and hands
them to the workers. Ray does not count a CPU as an accelerator: only the placement group's bundles
(`CPU: 1`) place an actor.
"""

from __future__ import annotations

import os

import ray
from vllm.v1.executor import ray_executor_v2
from vllm.v1.executor.ray_executor_v2 import RayExecutorV2, RayWorkerProc


class CPURayWorkerProc(RayWorkerProc):
    """A worker process in a Ray actor without accelerators."""

    def get_node_and_physical_gpu_ids(self) -> tuple[str, list[int]]:
        """Return the node's id, and no device."""
        return ray.get_runtime_context().get_node_id(), []

    def initialize_worker(self, *args: object, **kwargs: object) -> None:
        """Initialise without a device mapping; an empty one would leave the worker no device."""
        super().initialize_worker(*args, **kwargs | {"assigned_physical_gpu_ids": None})


class CPURayExecutor(RayExecutorV2):
    """vLLM's Ray executor with workers on CPUs."""

    @staticmethod
    def _get_actor_resource_kwargs() -> dict[str, object]:
        return {"num_gpus": 0}

    def _build_runtime_env(self) -> dict:
        """Give workers the driver's number of threads; Ray would set it to 1."""
        runtime_env = super()._build_runtime_env()
        if "OMP_NUM_THREADS" in os.environ:
            runtime_env["env_vars"].setdefault("OMP_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
        return runtime_env

    def _init_executor(self) -> None:
        # The host takes its actors' class from this global alone.
        ray_executor_v2.RayWorkerProc = CPURayWorkerProc
        super()._init_executor()
        # The driver maps no device either.
        self.parallel_config.assigned_physical_gpu_ids = None


def share_ray_address() -> None:
    """Pass this process's Ray address to the engine process, which would else start its own Ray.

    vLLM does this in `_maybe_force_spawn`, but not where the start method is `spawn` already. On a
    CPU it always is.
    """
    if ray.is_initialized():
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
