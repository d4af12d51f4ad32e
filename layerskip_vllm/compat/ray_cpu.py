"""Ray workers on CPU: what vLLM's `RayExecutorV2` assumes of accelerators does not hold there.

vLLM 0.32 (`vllm/v1/executor/ray_executor_v2.py`) asks Ray which accelerators each actor was given
and hands them to the workers. A CPU is no accelerator of Ray's: the placement group's bundles hold
`CPU: 1`, which is all that places an actor.
"""

from __future__ import annotations

import os

import ray
from vllm.v1.executor import ray_executor_v2
from vllm.v1.executor.ray_executor_v2 import RayExecutorV2, RayWorkerProc


class CPURayWorkerProc(RayWorkerProc):
    """A worker process in a Ray actor that was given no accelerator."""

    def get_node_and_physical_gpu_ids(self) -> tuple[str, list[int]]:
        """Return the node's id, and no device."""
        return ray.get_runtime_context().get_node_id(), []

    def initialize_worker(self, *args: object, **kwargs: object) -> None:
        """Initialise without a mapping of devices: an empty one would mean that there are none."""
        super().initialize_worker(*args, **kwargs | {"assigned_physical_gpu_ids": None})


class CPURayExecutor(RayExecutorV2):
    """vLLM's Ray executor with workers that live on CPUs."""

    @staticmethod
    def _get_actor_resource_kwargs() -> dict[str, object]:
        return {"num_gpus": 0}

    def _build_runtime_env(self) -> dict:
        """Let the driver say how many threads a worker computes with; Ray itself would say one."""
        runtime_env = super()._build_runtime_env()
        if "OMP_NUM_THREADS" in os.environ:
            runtime_env["env_vars"].setdefault("OMP_NUM_THREADS", os.environ["OMP_NUM_THREADS"])
        return runtime_env

    def _init_executor(self) -> None:
        # The host names its actors' class nowhere but in this global; on a CPU no other will do.
        ray_executor_v2.RayWorkerProc = CPURayWorkerProc
        super()._init_executor()
        # No device is mapped on the driver's side either.
        self.parallel_config.assigned_physical_gpu_ids = None


def share_ray_address() -> None:
    """Tell the engine's process which Ray this one is connected to; it would start another.

    vLLM does so where it forces the engine's process to be spawned (`_maybe_force_spawn`), but on a
    CPU it always is.
    """
    if ray.is_initialized():
        os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
