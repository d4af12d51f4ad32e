"""Evaluates exits as vLLM uses them: drafts that it would accept, by exact replay."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from layerskip_vllm.checkpoint.settings import (
    MAX_EXIT_LAYERS,
    CheckpointSettings,
    distinct_exits,
)
from layerskip_vllm.lens.acceptance import Expectation
from layerskip_vllm.lens.lens import Lens, look
from layerskip_vllm.training.early_exit_loss import IGNORED

NUM_PROMPTS, PROMPT_TOKENS, MAX_TOKENS = 16, 32, 64
"""Held-out prompts, the tokens of one from plain text, and those generated after each at most."""

DRAFT_LENGTHS = (1, 2, 4, 6, 8)
"""K."""

REPORTED = 4
"""The K whose acceptance length every evaluation reports."""


def held_out_prompts(rows: Iterable[Mapping[str, Sequence[int]]]) -> list[list[int]]:
    """The beginnings of the first documents of packed rows: what precedes the first target.

    Where everything is a target, as in plain text, the first tokens.
    """
    return [_prompt_of(row) for row in islice(rows, NUM_PROMPTS)]


def _prompt_of(row: Mapping[str, Sequence[int]]) -> list[int]:
    length = row["seq_lengths"][0]
    targets = (i for i, label in enumerate(row["labels"][:length]) if label != IGNORED)
    end = next(targets, 0) or min(PROMPT_TOKENS, max(1, length // 2))
    return list(row["input_ids"][:end])


def chat_prompts(
    chats: Iterable[Mapping[str, Sequence[Mapping[str, str]]]],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
) -> list[list[int]]:
    """The first chats up to the assistant's first turn, by the tokenizer's template.

    Args:
        chats: With `messages`.
        tokenizer: Has a chat template.
        max_tokens: Longer ones are left out.
    """
    opened = (_before_answer(chat["messages"]) for chat in chats)
    prompts = (
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        for messages in opened
        if messages
    )
    ids = (list(prompt["input_ids"]) for prompt in prompts)
    return list(islice((prompt for prompt in ids if len(prompt) <= max_tokens), NUM_PROMPTS))


def _before_answer(messages: Sequence[Mapping[str, str]]) -> Sequence[Mapping[str, str]]:
    """The messages before the assistant's first; none if it never answers or opens the chat."""
    return messages[: next((i for i, m in enumerate(messages) if m["role"] == "assistant"), 0)]


def replay_prompts(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], stop_id: int | None
) -> Lens:
    """Generate after each prompt, and read every exit's predictions of it.

    Args:
        model: Loaded, or in training.
        prompts: Token ids of each.
        stop_id: Ends a text.

    Raises:
        ValueError: The model does more than norm and LM head after its last layer.
    """
    stop_ids = frozenset([] if stop_id is None else [stop_id])
    with _own_forward(model):
        return look(
            model,
            prompts,
            max_tokens=MAX_TOKENS,
            max_num_speculative_tokens=max(DRAFT_LENGTHS),
            stop_ids=stop_ids,
        )


def acceptance_report(lens: Lens) -> dict[str, float]:
    """`acceptance_length_exit_E`: tokens per cycle of 4 drafts at each exit, 1 at least."""
    lengths = {
        exit_layer: lens.expect(exit_layer, REPORTED).counts.mean_acceptance_length
        for exit_layer in range(1, lens.num_layers)
    }
    return {
        f"acceptance_length_exit_{exit_layer}": length
        for exit_layer, length in lengths.items()
        if length is not None
    }


def best_settings(lens: Lens, trained_exits: Sequence[int] | None) -> CheckpointSettings | None:
    """Name the best exits by layer-count cost, the best one's K, and the acceptance of each.

    Args:
        lens: Of held-out prompts.
        trained_exits: E of a fixed curriculum; None: the curriculum trained all.

    Returns:
        None where the prompts led to no drafts.
    """
    candidates = [e for e in trained_exits or range(1, lens.num_layers) if e < lens.num_layers]

    def speedup(pair: Expectation) -> float:
        return pair.ideal_speedup or 0.0

    best = {e: max((lens.expect(e, k) for k in DRAFT_LENGTHS), key=speedup) for e in candidates}
    drafting = sorted(e for e in candidates if speedup(best[e]))
    ranked = sorted(drafting, key=lambda e: -speedup(best[e]))
    chosen = (
        tuple(ranked[:MAX_EXIT_LAYERS])
        if trained_exits
        else distinct_exits(ranked, lens.num_layers)
    )
    if not chosen:
        return None
    rates = [lens.expect(exit_layer, 1).counts.acceptance_rate or 0.0 for exit_layer in chosen]
    return CheckpointSettings(
        chosen, best[chosen[0]].num_speculative_tokens, tuple(round(rate, 4) for rate in rates)
    )


@contextmanager
def _own_forward(model: PreTrainedModel) -> Iterator[None]:
    """Give a model in training its class's forward back while the block runs."""
    training_forward = model.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if training_forward is not None:
            model.forward = training_forward
