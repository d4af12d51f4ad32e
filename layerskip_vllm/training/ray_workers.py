"""`layerskip-vllm train --ray-workers N`: the same run in the workers of a Ray cluster."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from layerskip_vllm.training.recipe import Recipe


def train_on_ray(recipe: Recipe, resume: bool, num_workers: int) -> None:
    """Train data parallel in N workers; each takes a GPU where the driver sees one, else a CPU.

    Ray Train gives each worker the rank and the process group that `torchrun` would; the Trainer
    finds them. Checkpoints are the Trainer's own, in the recipe's output_dir, which all workers
    must reach under the same path (a shared file system on a cluster of several hosts).

    Raises:
        ValueError: There is no such number of workers.
    """
    if num_workers < 1:
        raise ValueError(f"--ray-workers {num_workers} must be at least 1")
    TorchTrainer(
        _run_worker,
        train_loop_config={
            "recipe": recipe.model_dump(exclude_unset=True),
            "resume": resume,
            "directory": os.getcwd(),
        },
        scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=torch.cuda.is_available()),
        run_config=RunConfig(storage_path=str(Path(recipe.trainer.output_dir).resolve() / "ray")),
    ).fit()


def _run_worker(config: dict) -> None:
    from layerskip_vllm.training.run import train

    os.chdir(config["directory"])  # the recipe's paths are relative to where the user stands
    train(Recipe(**config["recipe"]), config["resume"])
