"""On CPU, draft tokens get their request's temperature, top-k and top-p.

Target: vllm.v1.sample.rejection_sampler:expand_batch_to_tokens
Reason: A fault of vLLM 0.32.0 on CPU without Triton. `_expand_kernel_impl` in
    `vllm/utils/cpu_triton_utils.py` hands an int64 *copy* of its output to the C++ kernel, so the
    sampling parameters of draft tokens are whatever the memory held. At temperature above 0 the
    output of every speculative method is then not the target's distribution: the chi-square test
    (`tests/engine/test_sampling.py`) fails for vLLM's own `ngram` as it did for ours.
How: Computes the same in PyTorch and does not call the original. An engine without `self:E` does
    not install it; one that shares the process with an engine that did gets the right values too.
Upstream: 0004-cpu-expand-kernel.patch
May go: When the oldest supported vLLM expands floats on CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from vllm.platforms import current_platform
from vllm.v1.sample import rejection_sampler

from layerskip_vllm.compat.wrapping import wrap

if TYPE_CHECKING:
    from collections.abc import Callable


def is_needed() -> bool:
    """By behaviour: on CPU, two floats come back as something else."""
    if not current_platform.is_cpu():
        return False
    values, ends = torch.tensor([0.3, 0.7]), torch.tensor([1, 3], dtype=torch.int32)
    expanded = rejection_sampler.expand_batch_to_tokens(values, ends, 3)
    return not torch.equal(expanded, values[[0, 1, 1]])


def install() -> None:
    """Wrap the function in the module that defines and calls it."""
    wrap(rejection_sampler, "expand_batch_to_tokens", expand_batch_to_tokens)


def expand_batch_to_tokens(
    original: Callable[..., torch.Tensor],
    x: torch.Tensor,  # [batch_size]
    cu_num_tokens: torch.Tensor,  # [batch_size]
    num_tokens: int,
    replace_from: int = 0,
    replace_to: int = 0,
) -> torch.Tensor:
    """Repeat each request's sampling parameter for each of its draft tokens: [num_tokens]."""
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    replaced = torch.where(x == replace_from, torch.full_like(x, replace_to), x)
    return replaced.repeat_interleave(counts, output_size=num_tokens)
