"""Self-speculation on vLLM's CPU worker (`vllm/v1/worker/cpu_worker.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.distributed.parallel_state import get_tp_group
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from layerskip_vllm.compat import worker
from layerskip_vllm.compat.install import install_hooks
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


class LayerSkipCPUWorker(CPUWorker):
    """vLLM's CPU worker with that runner."""

    def init_device(self) -> None:
        """Initialise as the host does, then replace its runner, which holds nothing yet."""
        install_hooks(worker)
        super().init_device()
        if self.use_v2_model_runner:
            from layerskip_vllm.runner_v2 import cpu as v2

            self.model_runner = v2.LayerSkipCPUModelRunner(self.vllm_config, self.device)
        else:
            self.model_runner = LayerSkipCPUModelRunner(self.vllm_config, self.device)
