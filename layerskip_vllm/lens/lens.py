"""Reads every layer's prediction through the shared norm and LM head (section 3 of the paper).

It prints nothing and imports no vLLM, so training and model cards can use it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import PreTrainedModel

from layerskip_vllm.lens.acceptance import AcceptanceCounts, Expectation, replay
from layerskip_vllm.lens.continuation import Continuation, continue_greedily
from layerskip_vllm.lens.exits import exit_states, num_decoder_layers

Section = Literal["text", "continuation"]
"""`text`: all positions of the prompts. `continuation`: all positions from which vLLM drafts, which
are the generated tokens without the last."""

CHUNK_TOKENS = 128
"""Tokens whose logits are in memory together: 64 MiB for a vocabulary of 128k."""


@dataclass(frozen=True)
class PromptTrace:
    """Every exit's predictions on one prompt and its greedy continuation."""

    token_ids: torch.Tensor  # [num_tokens], int64: prompt, continuation, tokens beyond its stop
    num_prompt_tokens: int
    num_new_tokens: int  # in the continuation, end-of-text token included
    top1_ids: torch.Tensor  # [num_layers, num_tokens], int64; row E - 1 is exit E
    top1_probs: torch.Tensor  # [num_layers, num_tokens], float32
    losses: torch.Tensor  # [num_layers, num_prompt_tokens - 1], float32, nats per prompt token

    def positions(self, section: Section) -> slice:
        """Columns of `top1_ids` that belong to a section."""
        if section == "text":
            return slice(0, self.num_prompt_tokens)
        drafting = max(self.num_new_tokens - 1, 0)
        return slice(self.num_prompt_tokens, self.num_prompt_tokens + drafting)

    def agreements(self, exit_layer: int) -> list[bool]:
        """Whether exit E, having read token i of the continuation, predicts token i + 1."""
        written = self.token_ids[self.num_prompt_tokens :]
        predicted = self.top1_ids[exit_layer - 1, self.num_prompt_tokens :]
        return (predicted[:-1] == written[1:]).tolist()


@dataclass(frozen=True)
class Lens:
    """Every exit's predictions on some prompts, and their statistics."""

    num_layers: int
    max_tokens: int  # most tokens generated per prompt
    traces: tuple[PromptTrace, ...]

    def top1_ids(self, section: Section) -> torch.Tensor:
        """Top-1 predictions of all prompts, [num_layers, num_positions]."""
        return torch.cat([trace.top1_ids[:, trace.positions(section)] for trace in self.traces], 1)

    def agreement(self, section: Section) -> list[float | None]:
        """Each exit's share of positions with the last layer's top-1; None: no positions."""
        ids = self.top1_ids(section)
        if ids.shape[1] == 0:
            return [None] * self.num_layers
        return (ids == ids[-1]).double().mean(dim=1).tolist()

    def mean_settle_layer(self, section: Section) -> float | None:
        """Mean exit from which the prediction no longer changes; None: no positions."""
        ids = self.top1_ids(section)
        return settle_layers(ids).double().mean().item() if ids.shape[1] else None

    def perplexity(self) -> list[float | None]:
        """Each exit's perplexity of the prompts; None if no prompt has 2 tokens."""
        losses = torch.cat([trace.losses for trace in self.traces], dim=1)
        if losses.shape[1] == 0:
            return [None] * self.num_layers
        return losses.double().mean(dim=1).exp().tolist()

    def expect(self, exit_layer: int, num_speculative_tokens: int) -> Expectation:
        """Replay greedy self-speculation with (E, K) on the continuations of these prompts."""
        counts = AcceptanceCounts()
        for trace in self.traces:
            agreements = trace.agreements(exit_layer)
            counts += replay(
                agreements, trace.num_new_tokens, self.max_tokens, num_speculative_tokens
            )
        return Expectation(exit_layer, num_speculative_tokens, self.num_layers, counts)


def settle_layers(
    top1_ids: torch.Tensor,  # [num_layers, num_positions]
) -> torch.Tensor:
    """Return per position the smallest E such that exits E .. L all predict the same token.

    Returns:
        [num_positions], int64, in [1, num_layers].
    """
    num_layers = top1_ids.shape[0]
    same = (top1_ids == top1_ids[-1]).long()
    return num_layers - same.flip(0).cumprod(dim=0).sum(dim=0) + 1


def look(
    model: PreTrainedModel,
    prompts: Iterable[Sequence[int]],
    *,
    max_tokens: int = 64,
    max_num_speculative_tokens: int = 8,
    stop_ids: Set[int] = frozenset(),
) -> Lens:
    """Continue each prompt greedily, then read every exit's predictions on the whole text.

    Args:
        model: A decoder with `model.layers`, `model.norm` and `lm_head`. It runs
            in evaluation mode, without layer dropout, and returns to its mode afterwards.
        prompts: Token ids of each prompt, at least one token each.
        max_tokens: Most tokens to generate per prompt.
        max_num_speculative_tokens: The largest K for `Lens.expect`.
        stop_ids: Tokens that end a continuation.

    Raises:
        ValueError: The model is not such a decoder.
    """
    num_layers = num_decoder_layers(model)
    traces = []
    with torch.inference_mode(), _evaluating(model):
        for prompt in prompts:
            continuation = continue_greedily(
                model, prompt, max_tokens, max_num_speculative_tokens - 1, stop_ids
            )
            traces.append(_trace(model, prompt, continuation))
    return Lens(num_layers, max_tokens, tuple(traces))


@contextmanager
def _evaluating(model: PreTrainedModel) -> Generator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _trace(
    model: PreTrainedModel, prompt: Sequence[int], continuation: Continuation
) -> PromptTrace:
    token_ids = torch.tensor([*prompt, *continuation.token_ids], device=model.device)
    exits = [_read_exit(model, state, token_ids) for state in exit_states(model, token_ids)]
    top1_ids, top1_probs, losses = (torch.stack(rows).cpu() for rows in zip(*exits, strict=True))
    return PromptTrace(
        token_ids=token_ids.cpu(),
        num_prompt_tokens=len(prompt),
        num_new_tokens=continuation.num_new_tokens,
        top1_ids=top1_ids,
        top1_probs=top1_probs,
        losses=losses[:, : len(prompt) - 1],
    )


def _read_exit(
    model: PreTrainedModel,
    state: torch.Tensor,  # [num_tokens, hidden_size], after the norm
    token_ids: torch.Tensor,  # [num_tokens]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return one exit's top-1 ids and probabilities [num_tokens], and losses [num_tokens - 1]."""
    chunks = []
    next_ids = token_ids.roll(-1)  # the last position has no target; its loss is dropped below
    for chunk, targets in zip(state.split(CHUNK_TOKENS), next_ids.split(CHUNK_TOKENS), strict=True):
        log_probs = F.log_softmax(model.lm_head(chunk).float(), dim=-1)
        top1 = log_probs.max(dim=-1)
        chunks.append(
            (top1.indices, top1.values.exp(), F.nll_loss(log_probs, targets, reduction="none"))
        )
    ids, probs, losses = (torch.cat(parts) for parts in zip(*chunks, strict=True))
    return ids, probs, losses[:-1]
