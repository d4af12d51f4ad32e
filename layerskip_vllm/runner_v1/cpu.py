"""vLLM's V1 CPU model runner with the LayerSkip cycle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.distributed.parallel_state import get_tp_group
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from layerskip_vllm.runner_v1.runner import LayerSkipRunnerMixin

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig

MIN_ROWS = 5
"""oneDNN multiplies 4 to 6 rows by a matrix faster than 1 to 3 (docs/performance.md)."""


class LayerSkipCPUModelRunner(LayerSkipRunnerMixin, CPUModelRunner):
    """vLLM's CPU model runner with the LayerSkip cycle."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device) -> None:
        super().__init__(vllm_config, device)
        if get_tp_group().world_size == 1:  # idle rows would cross the network too
            # No more than the model is compiled for.
            max_rows = vllm_config.scheduler_config.max_num_batched_tokens
            self.drafter.min_rows = min(MIN_ROWS, max_rows)
