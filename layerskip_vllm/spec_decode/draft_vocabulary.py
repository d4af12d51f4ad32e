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
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.tokenizers import cached_tokenizer_from_config

from layerskip_vllm.config import OPTIONS_KEY, LayerSkipConfig

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead


class DraftHead(nn.Module):
    """The rows of the LM head that belong to the draft's vocabulary, in a copy.

    It stands in for a `ParallelLMHead` in vLLM's `LogitsProcessor`, which calls `quant_method` and
    gathers the logits of all ranks. The rows are dealt out evenly, whichever shard they lie in: the
    frequent tokens' ids are low, so most lie in the first rank's. The last rank's idle rows, whose
    logit is -inf, give all ranks as many.
    """

    token_ids: torch.Tensor  # [num_logits], int64: logit of the gathered ones -> token, 0 if idle
    bias: torch.Tensor | None  # [num_rows], 0 or -inf; None where no row is idle

    def __init__(self, lm_head: ParallelLMHead, token_ids: np.ndarray) -> None:
        super().__init__()
        plain = (UnquantizedEmbeddingMethod, UnquantizedLinearMethod)
        if not isinstance(lm_head.quant_method, plain):
            raise ValueError(
                f"{OPTIONS_KEY}.draft_vocab_size={len(token_ids)} needs an LM head that is not "
                f"quantized, and this one is ({type(lm_head.quant_method).__name__}): leave it out"
            )
        self.tp_size = lm_head.tp_size
        self.vocab_size = lm_head.org_vocab_size
        dealt = torch.from_numpy(deal(token_ids, self.tp_size)).to(lm_head.weight.device)
        bias = lm_head.weight.new_zeros(dealt.shape[1])
        bias.masked_fill_(dealt[lm_head.tp_rank] < 0, -torch.inf)
        self.register_buffer("bias", bias if bias.any() else None, persistent=False)
        # The logits beyond the vocabulary's size, all idle, are cut off by `LogitsProcessor`.
        self._tokens_of_ranks = dealt.clamp(min=0)
        flat = self._tokens_of_ranks.flatten()[: self.vocab_size]
        self.register_buffer("token_ids", flat, persistent=False)
        self.quant_method = UnquantizedLinearMethod()
        self.weight: nn.Parameter | None = None
        self.copy_rows(lm_head)

    def copy_rows(self, lm_head: ParallelLMHead) -> None:
        """Copy the rows as they are now: at first, and again when the LM head has changed.

        A collective of the tensor-parallel group.
        """
        rows = _rows_of_all_shards(lm_head, self._tokens_of_ranks.flatten())
        own = rows.view(*self._tokens_of_ranks.shape, -1)[lm_head.tp_rank]
        if self.weight is not None and self.weight.is_cuda:
            self.weight.copy_(own)  # graphs read them at this address
            return
        self.weight = nn.Parameter(own.clone(), requires_grad=False)
        self.num_bytes = self.weight.nbytes
        """Memory that the copy holds."""
        self.quant_method.process_weights_after_loading(self)

    def expand(self, probs: torch.Tensor) -> torch.Tensor:
        """Probabilities of the draft's vocabulary as such of the target's: [*, vocab_size]."""
        full = probs.new_zeros(len(probs), self.vocab_size)
        return full.index_add_(1, self.token_ids, probs)


def deal(
    token_ids: np.ndarray,  # [draft_vocab_size], int64
    tp_size: int,
) -> np.ndarray:
    """Which token each rank's rows stand for: [tp_size, num_rows], int64, -1 for an idle row."""
    num_rows = -(-len(token_ids) // tp_size)
    dealt = np.full(tp_size * num_rows, -1, dtype=np.int64)
    dealt[: len(token_ids)] = token_ids
    return dealt.reshape(tp_size, num_rows)


def _rows_of_all_shards(
    lm_head: ParallelLMHead,
    token_ids: torch.Tensor,  # [num_rows], int64
) -> torch.Tensor:
    """The LM head's rows of these tokens, whichever rank holds them: [num_rows, hidden_size].

    A collective of the tensor-parallel group: each rank hands in its own rows and zeros.
    """
    shard = lm_head.shard_indices
    is_own = (token_ids >= shard.org_vocab_start_index) & (token_ids < shard.org_vocab_end_index)
    rows = lm_head.weight.new_zeros(len(token_ids), lm_head.weight.shape[1])
    rows[is_own] = lm_head.weight[token_ids[is_own] - shard.org_vocab_start_index]
    return tensor_model_parallel_all_reduce(rows)


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
    except (OSError, ValueError, AttributeError, TypeError, OverflowError) as error:
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
