"""Self-speculation on vLLM's CPU worker (`vllm/v1/worker/cpu_worker.py`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vllm.distributed.parallel_state import get_tp_group
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu
from vllm.v1.sample import rejection_sampler
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from layerskip_vllm.compat.wrapping import wrap
from layerskip_vllm.runner_v1.runner import LayerSkipRunnerMixin

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
        if self.lora_config and not _leaves_plain_rows_alone():
            # The module that defines them, and the one that has imported them by name.
            for host in (lora_ops, punica_cpu):
                wrap(host, "bgmv_expand", _expand_for_adapters)
                wrap(host, "bgmv_expand_slice", _expand_for_adapters)


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


def _leaves_plain_rows_alone() -> bool:
    """Whether vLLM's own function adds nothing to a row that has no adapter (patches/0009)."""
    output = torch.zeros(1, 1)
    lora_ops.bgmv_expand(torch.ones(1, 1), torch.ones(1, 1, 1), output, torch.tensor([-1]))
    return not output.any()


def _expand_for_adapters(
    original: Callable[..., None],
    inputs: torch.Tensor,  # [num_rows, rank]
    lora_b_weights: torch.Tensor,  # [max_loras, 1, output_size, rank]
    output_tensor: torch.Tensor,  # [num_rows, output_size]; added to in place
    lora_indices_tensor: torch.Tensor,  # [num_rows]: which adapter, -1 for none
    *args: object,
    **kwargs: object,
) -> None:
    """Add each row's product with its adapter's second matrix, and nothing where there is none.

    vLLM 0.32's function indexes the adapters by -1 then, which is the last of them: a request
    without an adapter got another one's where all slots were taken.
    """
    inputs = inputs.masked_fill((lora_indices_tensor < 0)[:, None], 0)
    original(inputs, lora_b_weights, output_tensor, lora_indices_tensor, *args, **kwargs)
