"""`layerskip-vllm train --ray-workers N`: the same run in the workers of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import ray
from ray.train import RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer

from layerskip_vllm.training.recipe import Recipe


def train_on_ray(recipe: Recipe, resume: bool, num_workers: int) -> None:
    """Train data parallel in N workers of the cluster at $RAY_ADDRESS, or of one on this machine.

    Ray Train gives each worker the rank and the process group that `torchrun` would; the Trainer
    finds them. Checkpoints are the Trainer's own, in the recipe's output_dir, which all workers
    must reach under the same path (a shared file system on a cluster of several hosts).

    Raises:
        ValueError: The cluster has no room for so many workers, or a worker refused the recipe.
    """
    ray.init(ignore_reinit_error=True)
    use_gpu = _use_gpu(num_workers, ray.cluster_resources())
    trainer = TorchTrainer(
        _run_worker,
        train_loop_config={
            "recipe": recipe.model_dump(exclude_unset=True),
            "resume": resume,
            "directory": os.getcwd(),
        },
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
        run_config=RunConfig(storage_path=str(Path(recipe.trainer.output_dir).resolve() / "ray")),
    )
    try:
        trainer.fit()
    except WorkerGroupError as error:
        for failure in error.worker_failures.values():
            cause = getattr(failure, "_base_exc", failure)  # it came wrapped, for its traceback
            if isinstance(cause, ValueError):
                raise ValueError(str(cause)) from None
        raise


def _use_gpu(num_workers: int, resources: Mapping[str, float]) -> bool:
    """Whether each worker gets a GPU, which it does if the cluster has any; else it gets a CPU."""
    kind = "GPU" if resources.get("GPU", 0) else "CPU"
    available = int(resources.get(kind, 0))
    if not 1 <= num_workers <= available:
        raise ValueError(
            f"--ray-workers {num_workers} must be in [1, {available}]: the cluster has "
            f"{available} {kind}s, one for each worker"
        )
    return kind == "GPU"


def _run_worker(config: dict) -> None:
    from layerskip_vllm.training.run import train

    os.chdir(config["directory"])  # the recipe's paths are relative to where the user stands
    train(Recipe(**config["recipe"]), config["resume"])
