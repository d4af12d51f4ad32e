"""vLLM's Ray executor runs workers on CPUs, for plain decoding too.

Target: vllm.v1.executor.abstract:Executor.get_class, vllm.platforms.cpu:CpuPlatform.ray_device_key
Reason: `RayExecutorV2` places workers by `Platform.ray_device_key`, which `CpuPlatform` leaves
    empty ("does not support ray"). It also asks Ray for each actor's accelerators, and a CPU is not
    one.
How: Sets `ray_device_key` to `CPU`. If the backend is `ray`, returns `CPURayExecutor` of
    `compat/ray_cpu.py`. This executor gives actors no resources beyond the placement group's
    bundle, and replaces the global `RayWorkerProc` with a subclass that maps no devices. The engine
    process gets this process's Ray address, and the workers get the driver's `OMP_NUM_THREADS`.
    Refuses `--data-parallel-backend ray` and, on vLLM 0.32, `VLLM_USE_RAY_V2_EXECUTOR_BACKEND=0`.
    vLLM 0.33 has neither the variable nor the executor that it chooses.
Upstream: 0007-ray-workers-on-cpu.patch
May go: When the oldest supported vLLM runs Ray workers on CPUs.
"""

from __future__ import annotations

from collections.abc import Callable

from vllm import envs
from vllm.config import VllmConfig
from vllm.platforms import current_platform
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.executor.abstract import Executor

from layerskip_vllm.compat.wrapping import wrap


def is_needed() -> bool:
    """By behaviour: on a CPU, the platform names no resource by which Ray could place workers."""
    return current_platform.is_cpu() and not CpuPlatform.ray_device_key


def install() -> None:
    """Name the resource, and wrap the choice of the executor."""
    CpuPlatform.ray_device_key = "CPU"
    wrap(Executor, "get_class", _executor_class)


def _executor_class(
    original: Callable[[VllmConfig], type[Executor]], vllm_config: VllmConfig
) -> type[Executor]:
    parallel_config = vllm_config.parallel_config
    if parallel_config.data_parallel_backend == "ray":
        # Its placement groups have an extra CPU bundle, which vLLM would take for a worker's.
        raise ValueError("--data-parallel-backend ray is not supported on CPU; use mp")
    if parallel_config.distributed_executor_backend != "ray":
        return original(vllm_config)
    if not getattr(envs, "VLLM_USE_RAY_V2_EXECUTOR_BACKEND", True):
        raise ValueError(
            "VLLM_USE_RAY_V2_EXECUTOR_BACKEND=0 chooses a Ray executor that has no workers on CPU; "
            "leave it out"
        )
    from layerskip_vllm.compat.ray_cpu import CPURayExecutor, share_ray_address

    share_ray_address()
    return CPURayExecutor
