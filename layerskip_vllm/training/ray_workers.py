"""`layerskip-vllm train --ray-workers N`: trains in the workers of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import ray
from ray.train import RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer

from layerskip_vllm.training.recipe import Recipe


def train_on_ray(recipe: Recipe, resume: bool, num_workers: int) -> None:
    """Train data parallel in N workers of the cluster at $RAY_ADDRESS, or of a local one.

    Ray Train sets up rank and process group like `torchrun`. The Trainer writes its checkpoints to
    the recipe's output_dir, which all workers must reach under the same path: several hosts need a
    shared file system.

    Raises:
        ValueError: The cluster is too small, or a worker cannot go on: a bad recipe, a full disk.
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
            cause = getattr(failure, "_base_exc", failure)  # Ray wraps it for its traceback
            if isinstance(cause, ValueError | OSError):
                raise ValueError(str(cause)) from None
        raise


def _use_gpu(num_workers: int, resources: Mapping[str, float]) -> bool:
    """Whether each worker gets a GPU, which needs a cluster with GPUs; otherwise it gets a CPU."""
    kind = "GPU" if resources.get("GPU", 0) else "CPU"
    available = int(resources.get(kind, 0))
    if not 1 <= num_workers <= available:
        raise ValueError(
            f"--ray-workers {num_workers} must be in [1, {available}]: the cluster has "
            f"{available} {kind}s, one per worker"
        )
    return kind == "GPU"


def _run_worker(config: dict) -> None:
    from layerskip_vllm.training.run import train

    os.chdir(config["directory"])  # the recipe's paths are relative to the user's directory
    train(Recipe(**config["recipe"]), config["resume"])
