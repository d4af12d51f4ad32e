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
    """Whether `self:E` runs on Model Runner V2.

    Where `VLLM_USE_V2_MODEL_RUNNER` leaves the choice, V2 runs on CUDA devices, for its CUDA graphs
    and asynchronous scheduling, and V1 for what only V1 has. On CPUs V1 is the faster one.
    """
    if envs.VLLM_USE_V2_MODEL_RUNNER is not None:
        return envs.VLLM_USE_V2_MODEL_RUNNER
    needs_v1 = any(is_used(engine_args) for _, is_used in RUNNER_V1_ONLY)
    return current_platform.is_cuda() and HAS_TRITON and not needs_v1
