"""The draft's vocabulary: the most frequent tokens, where the full LM head would cost too much.

At a vocabulary of 128k the LM head weighs as much as several layers, and each draft step reads all
of it. Verification keeps the full vocabulary: a token that the draft cannot say costs a rejected
draft, and the output is the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.tokenizers import cached_tokenizer_from_config

from layerskip_vllm.config import OPTIONS_KEY, LayerSkipConfig

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead


class DraftHead(nn.Module):
    """The rows of the LM head that belong to the draft's vocabulary, in a copy.

    It stands in for a `ParallelLMHead` in vLLM's `LogitsProcessor`, which calls `quant_method` and
    gathers the logits of all ranks. A rank copies the rows that lie in its shard; idle rows, whose
    logit is -inf, give all ranks as many.
    """

    token_ids: torch.Tensor  # [num_logits], int64: logit of the gathered ones -> token, 0 if idle
    bias: torch.Tensor | None  # [num_rows], 0 or -inf; None where no row is idle

    def __init__(self, lm_head: ParallelLMHead, token_ids: np.ndarray) -> None:
        super().__init__()
        device, shard_size = lm_head.weight.device, lm_head.shard_indices.num_org_elements_padded
        self.tp_size = lm_head.tp_size
        self.vocab_size = lm_head.org_vocab_size
        layout = shard_layout(token_ids, shard_size, self.tp_size)
        own = layout[lm_head.tp_rank]
        rows = torch.from_numpy(np.where(own < 0, 0, own % shard_size)).to(device)
        self.weight = nn.Parameter(lm_head.weight[rows], requires_grad=False)
        self.num_bytes = self.weight.nbytes
        """Memory that the copy holds."""
        bias = torch.from_numpy(np.where(own < 0, -np.inf, 0.0)).to(self.weight)
        self.register_buffer("bias", bias if bias.any() else None, persistent=False)
        # The logits beyond the vocabulary's size, all idle, are cut off by `LogitsProcessor`.
        flat = torch.from_numpy(np.maximum(layout.reshape(-1), 0)[: self.vocab_size])
        self.register_buffer("token_ids", flat.to(device), persistent=False)
        self.quant_method = UnquantizedLinearMethod()
        self.quant_method.process_weights_after_loading(self)

    def expand(self, probs: torch.Tensor) -> torch.Tensor:
        """Probabilities of the draft's vocabulary as such of the target's: [*, vocab_size]."""
        full = probs.new_zeros(len(probs), self.vocab_size)
        return full.index_add_(1, self.token_ids, probs)


def shard_layout(
    token_ids: np.ndarray,  # [draft_vocab_size], int64, ascending
    shard_size: int,
    tp_size: int,
) -> np.ndarray:
    """Which token each rank's rows stand for: [tp_size, num_rows], int64, -1 for an idle row.

    Rank r holds tokens [r * shard_size, (r + 1) * shard_size) of the LM head
    (`vllm/model_executor/layers/vocab_parallel_embedding.py`).
    """
    shards = token_ids // shard_size
    num_rows = np.bincount(shards, minlength=tp_size).max()
    layout = np.full((tp_size, num_rows), -1, dtype=np.int64)
    for rank in range(tp_size):
        own = token_ids[shards == rank]
        layout[rank, : len(own)] = own
    return layout


def draft_token_ids(config: LayerSkipConfig, model_config: ModelConfig) -> np.ndarray | None:
    """The draft's vocabulary: [draft_vocab_size], int64, ascending; None where it is the target's.

    Raises:
        ValueError: The size is beyond the target's vocabulary, or nothing says which tokens are
            frequent.
    """
    size, vocab_size = config.draft_vocab_size, model_config.get_vocab_size()
    if size is None:
        return None
    if size > vocab_size:
        raise ValueError(
            f"{OPTIONS_KEY}.draft_vocab_size={size} must be in [1, {vocab_size}], the model's "
            "vocabulary"
        )
    if model_config.head_dtype != model_config.dtype:
        raise ValueError(
            f"{OPTIONS_KEY}.draft_vocab_size={size} needs an LM head of the model's dtype: leave "
            f"out head_dtype={model_config.head_dtype}, or the draft's vocabulary"
        )
    if config.draft_vocab_counts is not None:
        counts = read_counts(Path(config.draft_vocab_counts), vocab_size)
        by_frequency: Iterable[int] = np.argsort(-counts, kind="stable").tolist()
    else:
        by_frequency = _by_merge_order(model_config)
    # Requests end on these, however rare they are in a text.
    eos = model_config.hf_text_config.eos_token_id
    first = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    ids = [i for i in dict.fromkeys([*first, *by_frequency]) if i < vocab_size][:size]
    return np.sort(np.array(ids, dtype=np.int64))


def read_counts(path: Path, vocab_size: int) -> np.ndarray:
    """Read how often each token occurs: [vocab_size], float64.

    The file holds one JSON object, token id -> count; a token that it leaves out counts 0.

    Raises:
        ValueError: It cannot be read so.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        counts = np.zeros(vocab_size)
        for token_id, count in entries.items():
            if not 0 <= int(token_id) < vocab_size:
                raise ValueError(f"token id {token_id} must be in [0, {vocab_size - 1}]")
            counts[int(token_id)] = float(count)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{OPTIONS_KEY}.draft_vocab_counts={str(path)!r}: expected a JSON object of token ids "
            f'and counts, such as {{"464": 1520, "290": 1306}}: {error}'
        ) from None
    return counts


def _by_merge_order(model_config: ModelConfig) -> list[int]:
    """Token ids of a BPE tokenizer, the most frequent first.

    Training a BPE merges the most frequent pair first, so the place of a token's merge is its rank;
    tokens that no merge makes, the alphabet, come before all.
    """
    tokenizer = cached_tokenizer_from_config(model_config)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.loads(backend.to_str())["model"] if backend is not None else {}
    if not model.get("merges"):
        raise ValueError(
            f"{OPTIONS_KEY}.draft_vocab_size: the tokenizer {model_config.tokenizer!r} has no "
            "merges that say which tokens are frequent; name a file of counts in "
            "draft_vocab_counts"
        )
    vocab: dict[str, int] = model["vocab"]
    pairs = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"])
    merged = [vocab[left + right] for left, right in pairs if left + right in vocab]
    alphabet = sorted(set(vocab.values()) - set(merged))
    return [*alphabet, *merged]
