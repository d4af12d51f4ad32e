"""On CPU, requests without a LoRA adapter run without one.

Target: vllm.lora.ops.torch_ops.lora_ops:bgmv_expand,
    vllm.lora.ops.torch_ops.lora_ops:bgmv_expand_slice,
    vllm.lora.punica_wrapper.punica_cpu:bgmv_expand,
    vllm.lora.punica_wrapper.punica_cpu:bgmv_expand_slice
Reason: A row without an adapter has the index -1. On CPU, vLLM 0.32.0 takes it for the index of the
    last adapter; the Triton kernels skip such rows. If adapters take all of `max_loras` slots,
    requests for the base model in the same batch get the last adapter, so an answer depends on the
    other requests. vLLM 0.33 repaired this, and the probe skips the hook there.
How: Sets the inputs of such rows to 0, then calls the original. Wraps the functions both in the
    module that defines them and in the one that imports them by name. An engine without `self:E`
    does not install the hook.
Upstream: 0009-cpu-lora-rows-without-adapter.patch; repaired in vLLM 0.33.
May go: When the oldest supported vLLM is 0.33.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu
from vllm.platforms import current_platform

from layerskip_vllm.compat.wrapping import wrap

if TYPE_CHECKING:
    from collections.abc import Callable


def is_needed() -> bool:
    """By behaviour: on CPU, `bgmv_expand` adds something to a row with index -1."""
    if not current_platform.is_cpu():
        return False
    output = torch.zeros(1, 1)
    lora_ops.bgmv_expand(torch.ones(1, 1), torch.ones(1, 1, 1), output, torch.tensor([-1]))
    return bool(output.any())


def install() -> None:
    """Wrap both functions in both modules."""
    for host in (lora_ops, punica_cpu):
        wrap(host, "bgmv_expand", expand_for_adapters)
        wrap(host, "bgmv_expand_slice", expand_for_adapters)


def expand_for_adapters(
    original: Callable[..., None],
    inputs: torch.Tensor,  # [num_rows, rank]
    lora_b_weights: torch.Tensor,  # [max_loras, 1, output_size, rank]
    output_tensor: torch.Tensor,  # [num_rows, output_size]; added to in place
    lora_indices_tensor: torch.Tensor,  # [num_rows]: which adapter, -1 for none
    *args: object,
    **kwargs: object,
) -> None:
    """Add each row's product with its adapter's second matrix; skip rows without an adapter."""
    inputs = inputs.masked_fill((lora_indices_tensor < 0)[:, None], 0)
    original(inputs, lora_b_weights, output_tensor, lora_indices_tensor, *args, **kwargs)
