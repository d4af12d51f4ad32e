"""Self-speculation on vLLM's CPU worker (`vllm/v1/worker/cpu_worker.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vllm.distributed.parallel_state import get_tp_group
from vllm.v1.sample import rejection_sampler
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from layerskip_vllm.worker.runner import LayerSkipRunnerMixin
from layerskip_vllm.wrapping import wrap

if TYPE_CHECKING:
    from collections.abc import Callable

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
        if not _expands_floats():
            wrap(rejection_sampler, "expand_batch_to_tokens", _expand_batch_to_tokens)


class LayerSkipCPUWorker(CPUWorker):
    """vLLM's CPU worker with that runner."""

    def init_device(self) -> None:
        """Initialise as the host does, then replace its runner, which holds nothing yet."""
        super().init_device()
        self.model_runner = LayerSkipCPUModelRunner(self.vllm_config, self.device)


def _expands_floats() -> bool:
    """Whether vLLM's own function does what it is for (patches/0004)."""
    values, ends = torch.tensor([0.3, 0.7]), torch.tensor([1, 3], dtype=torch.int32)
    expanded = rejection_sampler.expand_batch_to_tokens(values, ends, 3)
    return torch.equal(expanded, values[[0, 1, 1]])


def _expand_batch_to_tokens(
    original: Callable[..., torch.Tensor],
    x: torch.Tensor,  # [batch_size]
    cu_num_tokens: torch.Tensor,  # [batch_size]
    num_tokens: int,
    replace_from: int = 0,
    replace_to: int = 0,
) -> torch.Tensor:
    """Repeat each request's sampling parameter for each of its draft tokens: [num_tokens].

    vLLM 0.32's CPU kernel (`vllm/utils/cpu_triton_utils.py`, `_expand_kernel_impl`) writes into an
    int64 copy of its output, so temperature, top-k and top-p of draft tokens would be whatever the
    memory held: sampling at temperature > 0 with any speculative method would be wrong.
    """
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    replaced = torch.where(x == replace_from, torch.full_like(x, replace_to), x)
    return replaced.repeat_interleave(counts, output_size=num_tokens)
