"""Time of a decoding step, by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.stopwatch import Path, Stopwatch

if TYPE_CHECKING:
    from layerskip_vllm.measure.engine import VllmEngine

PARTS: dict[str, tuple[Path, ...]] = {
    "draft: layers": (("draft", "early"),),
    "draft: LM head": (("draft", "head"),),
    "draft: rest": (("draft",),),
    "verify: all layers": (("forward",),),
    "verify: remaining layers": (("split forward", "remaining"),),
    "verify: full forward or rest": (("split forward",),),
    "LM head": (("head",),),
    "sampling": (("sampling",),),
    "scheduling": (("scheduling",),),
    "batch preparation": (("batch",),),
    "outputs": (("outputs",),),
}
"""Part of a step -> the paths of its timed calls, without what is nested in them. The forward of
plain decoding, or of a model that is not split, counts as a verification without drafts."""

REST = "rest"
"""Time outside all timed calls, mostly the engine's loop."""


@dataclass(frozen=True)
class StepBreakdown:
    """Mean milliseconds per full step, by part; the parts add up to the step."""

    batch_size: int
    step_ms: float
    parts_ms: dict[str, float]
    tokens_per_step: float


def measure_step_breakdown(
    engine: VllmEngine, prompts: Sequence[Sequence[int]], max_tokens: int
) -> StepBreakdown:
    """Decode a batch under the stopwatch; only full steps count."""
    stopwatch = Stopwatch()
    by_step: list[dict[Path, float]] = []
    with stopwatch.timing(_methods(engine)):
        decoding = engine.decode(
            prompts, max_tokens, after_step=lambda: by_step.append(stopwatch.take())
        )
    steps = decoding.full_steps()

    def mean_ms(paths: Sequence[Path]) -> float:
        seconds = sum(by_step[step].get(path, 0.0) for step in steps for path in paths)
        return 1000 * seconds / len(steps)

    step_ms = 1000 * sum(decoding.step_s[step] for step in steps) / len(steps)
    parts_ms = {part: mean_ms(paths) for part, paths in PARTS.items()}
    parts_ms[REST] = step_ms - sum(parts_ms.values())
    return StepBreakdown(len(prompts), step_ms, parts_ms, decoding.tokens_per_step)


def _methods(engine: VllmEngine) -> list[tuple[object, str, str]]:
    """The methods to time: the engine's, and those of its drafter and split model, if any."""
    runner, model = engine.runner, engine.model
    is_split = hasattr(model, "run_early_layers")
    methods: list[tuple[object, str, str]] = [
        (runner, "_model_forward", "split forward" if is_split else "forward"),
        (model.logits_processor, "forward", "head"),
        (runner, "_sample", "sampling"),
        (engine.scheduler, "schedule", "scheduling"),
        (engine.scheduler, "update_from_output", "scheduling"),
        (runner, "_update_states", "batch"),
        (runner, "_prepare_inputs", "batch"),
        (runner, "_build_attention_metadata", "batch"),
        (runner, "_bookkeeping_sync", "batch"),
        (engine.engine.output_processor, "process_outputs", "outputs"),
    ]
    drafter = getattr(runner, "drafter", None)
    if drafter is None:
        return methods
    methods.append((runner, "propose_draft_token_ids", "draft"))
    if is_split:
        methods.append((model, "run_early_layers", "early"))
        methods.append((model, "run_remaining_layers", "remaining"))
    elif hasattr(drafter, "model"):
        methods.append((drafter.model, "forward", "early"))
        methods.append((drafter.model.logits_processor, "forward", "head"))
    return methods
