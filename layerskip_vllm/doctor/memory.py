"""States the memory that self-speculation and the KV cache take; the weights are not counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from layerskip_vllm.doctor.checks import Check

if TYPE_CHECKING:
    from vllm.config import VllmConfig

SECTION = "memory"


def check_memory(config: VllmConfig) -> Iterator[Check]:
    """Yield what an engine of `self:E` takes beside the weights and the activations."""
    num_bytes = num_state_bytes(config)
    found = f"{num_bytes / 1e6:.1f} MB a rank"
    yield Check(SECTION, "exit query cache", "ok", found, values={"bytes_per_rank": num_bytes})
    yield _draft_vocabulary(config)
    yield _kv_cache(config)


def _draft_vocabulary(config: VllmConfig) -> Check:
    model, size = config.model_config, config.speculative_config.layerskip.draft_vocab_size
    found, num_bytes = "none: drafts use the whole LM head", 0
    if size is not None:
        num_bytes = size * model.get_hidden_size() * model.dtype.itemsize
        found = f"{num_bytes / 1e6:.1f} MB in all: {size} of {model.get_vocab_size()} tokens"
    values = {"num_tokens": size, "bytes": num_bytes}
    return Check(SECTION, "draft vocabulary", "ok", found, values=values)


def _kv_cache(config: VllmConfig) -> Check:
    """The draft shares the target's cache, so `self:E` adds nothing to it.

    On a CPU, vLLM's default size leaves little memory to the rest of the host.
    """
    from vllm.platforms import current_platform

    num_bytes = kv_bytes_per_token(config)
    length = config.model_config.max_model_len
    found = (
        f"{num_bytes / 1e3:.1f} kB a token and rank, so {num_bytes * length / 1e6:,.1f} MB for a "
        f"request of {length} tokens; self-speculation adds nothing"
    )
    values = {"bytes_per_token": num_bytes}
    if not current_platform.is_cpu() or config.cache_config.kv_cache_memory_bytes is not None:
        return Check(SECTION, "KV cache", "ok", found, values=values)
    share = 100 * config.cache_config.gpu_memory_utilization
    advice = f"vLLM takes {share:.0f} % of this host: set VLLM_CPU_KVCACHE_SPACE, in GiB"
    return Check(SECTION, "KV cache", "warn", found, advice, values)


def kv_bytes_per_token(config: VllmConfig) -> int:
    """Bytes of one token's keys and values in all layers of one rank."""
    from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype

    model = config.model_config
    num_layers = model.get_num_layers(config.parallel_config)
    num_heads = model.get_num_kv_heads(config.parallel_config)
    dtype = kv_cache_dtype_str_to_dtype(config.cache_config.cache_dtype, model)
    return 2 * num_layers * num_heads * model.get_head_size() * dtype.itemsize


def num_state_bytes(config: VllmConfig) -> int:
    """Bytes of the exit query cache, and of what V2 keeps to observe several exits."""
    from layerskip_vllm.runner_v2.passing_states import PassingStates
    from layerskip_vllm.spec_decode.exit_query_cache import ExitQueryCache

    on_v2, model = config.use_v2_model_runner, config.model_config
    shape = (
        config.scheduler_config.max_num_seqs + on_v2,  # V2's last row is nobody's
        config.speculative_config.num_speculative_tokens,
        model.get_hidden_size(),
        model.dtype,
        torch.device("meta"),
    )
    num_bytes = ExitQueryCache(*shape).num_bytes
    num_exits = len(config.speculative_config.layerskip.exit_layers)
    if on_v2 and num_exits > 1:
        num_bytes += PassingStates(num_exits, *shape).num_bytes
    return num_bytes
