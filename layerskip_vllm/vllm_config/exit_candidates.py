"""The exits among which `self:auto` chooses, and the one with which it starts; imports no vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from layerskip_vllm.checkpoint.settings import MAX_EXIT_LAYERS, parse_settings
from layerskip_vllm.config import AUTO_MODEL, EXIT_LAYERS, OPTIONS_KEY


class ModelShape(NamedTuple):
    """What tells the published checkpoints apart."""

    num_layers: int
    hidden_size: int
    vocab_size: int


class ExitCandidates(NamedTuple):
    """What `self:auto` starts from."""

    exit_layers: tuple[int, ...]
    """Ascending."""
    first: int
    """The one that drafts before anything is learnt."""
    num_speculative_tokens: int | None
    """K, if the source names one."""
    source: str
    """For the log."""
    match_rates: tuple[float, ...] = ()
    """Of each exit, where the source knows them."""
    draft_vocab_size: int | None = None
    """Where the source has one."""


PUBLISHED = {
    ModelShape(32, 4096, 32000): (8, 6),  # layerskip-llama2-7B
    ModelShape(40, 5120, 32000): (8, 6),  # layerskip-llama2-13B
    ModelShape(80, 8192, 32000): (10, 6),  # layerskip-llama2-70B
    ModelShape(32, 4096, 32016): (4, 6),  # layerskip-codellama-7B
    ModelShape(48, 8192, 32000): (8, 6),  # layerskip-codellama-34B
    ModelShape(32, 4096, 128256): (4, 6),  # layerskip-llama3-8B
    ModelShape(16, 2048, 128256): (4, 6),  # layerskip-llama3.2-1B
}
"""Shape of a `facebook/layerskip-*` checkpoint -> (E, K) with which its authors measured it.

E is from the tables of huggingface.co/blog/layerskip, but for Llama 2 7B, and K from the README of
github.com/facebookresearch/LayerSkip, which drafts 6 tokens at exit 8 of Llama 2 7B.
"""


def find_candidates(options: Mapping, checkpoint: object, shape: ModelShape) -> ExitCandidates:
    """Return the exits that the user names, else the checkpoint, else its shape or depth.

    Args:
        options: `additional_config["layerskip"]`.
        checkpoint: `layerskip` of the checkpoint's `config.json`; None: it has none.
        shape: The target's.

    Raises:
        ValueError: A source holds no valid exits, or the target is too shallow.
    """
    if shape.num_layers < 2:  # noqa: PLR2004
        raise ValueError(f"{AUTO_MODEL} needs a target of at least 2 layers")
    if EXIT_LAYERS in options:
        exit_layers = check_exit_layers(
            options[EXIT_LAYERS], shape.num_layers, f"{OPTIONS_KEY}.{EXIT_LAYERS}"
        )
        return _starting_in_the_middle(exit_layers, None, f"the option {EXIT_LAYERS}")
    if checkpoint is not None:
        return _of_checkpoint(checkpoint, shape.num_layers)
    if shape in PUBLISHED:
        exit_layer, num_tokens = PUBLISHED[shape]
        exit_layers = (exit_layer // 2, exit_layer, exit_layer * 3 // 2)
        return ExitCandidates(
            exit_layers, exit_layer, num_tokens, "the published LayerSkip checkpoint of this shape"
        )
    return _starting_in_the_middle(of_depth(shape.num_layers), None, "the model's depth")


def of_depth(num_layers: int) -> tuple[int, ...]:
    """About a fifth, a third and a half of the layers, in [1, num_layers - 1] and distinct."""
    shares = (round(num_layers / part) for part in (5, 3, 2))
    return tuple(sorted({min(max(layer, 1), num_layers - 1) for layer in shares}))


def check_exit_layers(value: object, num_layers: int, name: str) -> tuple[int, ...]:
    """Return the exits among which `self:auto` chooses, ascending.

    Args:
        value: A list of 1 to MAX_EXIT_LAYERS different exit layers, in any order.
        num_layers: L of the target.
        name: Where the value comes from, for the message.

    Raises:
        ValueError: It is no such list, or an exit is not in [1, num_layers - 1].
    """
    is_list = isinstance(value, (list, tuple)) and 1 <= len(value) <= MAX_EXIT_LAYERS
    if is_list and all(isinstance(e, int) and not isinstance(e, bool) for e in value):  # type: ignore[attr-defined]
        exit_layers = tuple(sorted(set(value)))  # type: ignore[call-overload]
        is_distinct = len(exit_layers) == len(value)  # type: ignore[arg-type]
        if is_distinct and exit_layers[0] >= 1 and exit_layers[-1] < num_layers:
            return exit_layers
    raise ValueError(
        f"{name}={value!r} must be a list of 1 to {MAX_EXIT_LAYERS} different whole numbers in "
        f"[1, {num_layers - 1}] for a {num_layers}-layer target, for example "
        f"{list(of_depth(num_layers))}"
    )


def _of_checkpoint(value: object, num_layers: int) -> ExitCandidates:
    """Start from the best of the exits that training or a sweep has named."""
    source = "the checkpoint's config.json"
    try:
        settings = parse_settings(value, num_layers, source)
    except ValueError as error:
        raise ValueError(f"{error}; mend it, or set {OPTIONS_KEY}.{EXIT_LAYERS}") from None
    exit_layers = settings.exit_layers[:MAX_EXIT_LAYERS]
    rates = dict(zip(exit_layers, settings.acceptance_rate or (), strict=False))
    return ExitCandidates(
        tuple(sorted(exit_layers)),
        exit_layers[0],
        settings.num_speculative_tokens,
        source,
        match_rates=tuple(rates[layer] for layer in sorted(rates)),
        draft_vocab_size=settings.draft_vocab_size,
    )


def _starting_in_the_middle(
    exit_layers: tuple[int, ...], num_speculative_tokens: int | None, source: str
) -> ExitCandidates:
    first = exit_layers[(len(exit_layers) - 1) // 2]
    return ExitCandidates(exit_layers, first, num_speculative_tokens, source)
