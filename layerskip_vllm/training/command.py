"""`layerskip-vllm train recipe.yaml`: trains a LayerSkip checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from layerskip_vllm.training.recipe import load_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `layerskip-vllm train`'s arguments."""
    parser.add_argument("recipe", type=Path, help="YAML file; see examples/")
    parser.add_argument(
        "--resume", action="store_true", help="continue from the last checkpoint in output_dir"
    )
    parser.add_argument(
        "--ray-workers",
        type=int,
        metavar="N",
        help="train data parallel with N workers of a Ray cluster",
    )


def run(args: argparse.Namespace) -> int:
    """Train; returns the exit code."""
    recipe = load_recipe(args.recipe)
    if args.ray_workers is None:
        from layerskip_vllm.training.run import train

        train(recipe, args.resume)
    else:
        from layerskip_vllm.training.ray_workers import train_on_ray

        train_on_ray(recipe, args.resume, args.ray_workers)
    return 0
