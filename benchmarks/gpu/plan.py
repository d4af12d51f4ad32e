"""The jobs of the check, the most important first."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.engines import runner_variables
from benchmarks.gpu.exactness import RUNNER_VARIANTS, ExactnessTask
from benchmarks.gpu.forwards import ForwardTask
from benchmarks.gpu.jobs import Job
from benchmarks.gpu.models import PREPARED, CheckpointTask
from benchmarks.gpu.speed import COLUMNS, SpeedTask

PARTS = ("exactness", "1b", "7b", "tinyllama", "1b-065")
"""Names on the command line; a model's part makes the model and measures its speed."""

BATCH_SIZES = [1, 4, 16, 64]

SIDE_BY_SIDE = 4
"""Jobs that run at a time where nothing is timed."""

# Measured on one H200 with cold caches: 1b and exactness. The others are estimates.
CHECKPOINT_S = {"1b": 30, "1b-065": 45, "tinyllama": 45, "7b": 75}
SPEED_S = {"1b": 75, "1b-065": 75, "tinyllama": 75, "7b": 100}
LOOK_INSIDE_S = 15
FORWARDS_S = {"1b": 60, "7b": 80}
EXACTNESS_S = {"V1": 160, "V2": 270}

LOOK_INSIDE = {("1b", column) for column in ("plain", "self-v2", "self-v2-vocab", "self-v1")}


Step = tuple[Job, ...]
"""Jobs that may run side by side."""


def steps(work_dir: Path, parts: Collection[str] = PARTS) -> list[Step]:
    """Everything, in order.

    Args:
        work_dir: For checkpoints and caches, which take many gigabytes.
        parts: Names from PARTS.
    """
    plan = Plan(work_dir)
    return [
        jobs
        for step in plan.all_steps()
        if (jobs := tuple(job for job in step if job.part in parts))
    ]


@dataclass(frozen=True)
class Plan:
    """Makes jobs whose files are in one directory."""

    work_dir: Path

    def all_steps(self) -> list[list[Job]]:
        """Exactness decides whether a speed means anything; then the product's default."""
        exactness, speed = self.exactness, self.speed
        return [
            [
                self.checkpoint("1b"),
                exactness("float32", "V2", "random"),
                exactness("float32", "V1", "random"),
                exactness("float32", "V2", "python-10m"),
            ],
            [speed("1b", "plain")],
            [speed("1b", "self-v2")],
            [speed("1b", "self-v2-vocab")],
            [speed("1b", "self-v2-default")],
            [speed("1b", "self-v2-auto")],
            [self.forwards("1b")],
            [
                exactness("bfloat16", "V2", "random"),
                exactness("bfloat16", "V2", "python-10m"),
                exactness("float32", "V1", "python-10m"),
                exactness("bfloat16", "V1", "random"),
                exactness("bfloat16", "V1", "python-10m"),
                self.checkpoint("7b"),
            ],
            *([speed("1b", column)] for column in ("self-v1", "plain-v1", "draft_model", "ngram")),
            [speed("7b", "plain")],
            [speed("7b", "self-v2")],
            [self.forwards("7b")],
            [self.checkpoint("tinyllama"), self.checkpoint("1b-065")],
            *(
                [speed("tinyllama", column)]
                for column in ("plain", "self-v2", "self-v1", "plain-v1", "draft_model", "ngram")
            ),
            *([speed("7b", name)] for name in ("self-v1", "plain-v1", "draft_model", "ngram")),
            *([speed("1b-065", column)] for column in ("plain", "self-v2", "self-v2-vocab")),
            [exactness("bfloat16", "V2", "random", batch_invariant=True)],
        ]

    def exactness(self, dtype: str, runner: str, model: str, batch_invariant: bool = False) -> Job:
        """A comparison of `self:E` with plain vLLM."""
        name = f"exactness {dtype} {runner} {model}"
        variables = runner_variables(runner)
        if batch_invariant:
            name += " batch-invariant"
            variables |= {"VLLM_BATCH_INVARIANT": "1"}
        if dtype == "float32":
            # Triton multiplies float32 matrices in TF32 otherwise.
            variables |= {"TRITON_F32_DEFAULT": "ieee", "VLLM_FLOAT32_MATMUL_PRECISION": "highest"}
        # Jobs that run side by side must not write to the same compile cache.
        cache = self.work_dir / "vllm-cache" / re.sub(r"\W+", "-", name)
        variables |= {"VLLM_CACHE_ROOT": str(cache)}
        task = ExactnessTask(
            job=name,
            model=model,
            dtype=dtype,
            attention_backend="TRITON_ATTN" if dtype == "float32" else None,
            variants=[variant.name for variant in RUNNER_VARIANTS[runner]],
            directory=str(self.work_dir / re.sub(r"\W+", "-", name)),
        )
        return Job(name, "exactness", task, EXACTNESS_S[runner], variables)

    def checkpoint(self, model: str) -> Job:
        """Making a model of the speed table."""
        task = CheckpointTask(model, str(self.work_dir / model))
        return Job(f"checkpoint {model}", model, task, CHECKPOINT_S[model])

    def forwards(self, model: str) -> Job:
        """Plain's steps, from which the report computes the ideal of a model."""
        name = f"speed {model} forwards"
        prepared = str(self.work_dir / model / PREPARED)
        task = ForwardTask(name, prepared, BATCH_SIZES)
        return Job(name, model, task, FORWARDS_S[model], requires=prepared)

    def speed(self, model: str, column: str) -> Job:
        """One column of a model's speed table."""
        name = f"speed {model} {column}"
        prepared = str(self.work_dir / model / PREPARED)
        looks_inside = (model, column) in LOOK_INSIDE
        task = SpeedTask(name, prepared, column, BATCH_SIZES, looks_inside=looks_inside)
        return Job(
            name,
            model,
            task,
            SPEED_S[model] + LOOK_INSIDE_S * looks_inside,
            runner_variables(COLUMNS[column].runner),
            requires=prepared,
        )
