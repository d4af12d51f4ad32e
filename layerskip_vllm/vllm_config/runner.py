"""Which of vLLM's model runners `self:E` uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vllm import envs
from vllm.platforms import current_platform
from vllm.triton_utils import HAS_TRITON

if TYPE_CHECKING:
    from vllm.engine.arg_utils import EngineArgs

RUNNER_V1_ONLY: tuple[tuple[str, Callable[[EngineArgs], object]], ...] = (
    # One mapping of rows to adapters cannot serve both layouts, drafts' and the target's.
    ("LoRA", lambda args: args.enable_lora),
)
"""(name, predicate of the engine arguments) pairs: what self-speculation has on runner V1 alone."""


def uses_runner_v2(engine_args: EngineArgs) -> bool:
    """Whether `self:E` runs on Model Runner V2."""
    return choose_runner(engine_args)[0]


def choose_runner(engine_args: EngineArgs) -> tuple[bool, str]:
    """Return whether `self:E` runs on Model Runner V2, and why.

    Where `VLLM_USE_V2_MODEL_RUNNER` leaves the choice, V2 runs on CUDA devices, for its CUDA graphs
    and asynchronous scheduling, and V1 for what only V1 has. On CPUs V1 is the faster one.
    """
    if (asked := envs.VLLM_USE_V2_MODEL_RUNNER) is not None:
        return asked, f"VLLM_USE_V2_MODEL_RUNNER={int(asked)}"
    if not current_platform.is_cuda():
        return False, "V1 is the faster one on CPUs"
    if not HAS_TRITON:
        return False, "V2 needs Triton, which is not installed"
    if needed := [name for name, is_used in RUNNER_V1_ONLY if is_used(engine_args)]:
        return False, f"V2 does not support {', '.join(needed)} under self:E"
    return True, "V2 has CUDA graphs and asynchronous scheduling"
