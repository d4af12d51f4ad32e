"""Options of self-speculation and early exit, per engine and per request.

Imports no vLLM and no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

SELF_PREFIX = "self:"
"""The speculative model `self:E` is the first E layers of the target."""

AUTO_MODEL = "self:auto"
"""The speculative model whose E is chosen step by step among a few exits."""

DEFAULT_NUM_SPECULATIVE_TOKENS = 4
"""Default K. At an acceptance rate of 0.8 the layer-count model of the cost is flat between 3 and
6, and a small K loses least when acceptance is low."""

DEFAULT_AUTO_TOKENS = 8
"""The same of `self:auto` where the checkpoint names none: it drafts fewer wherever they pay more,
and at an acceptance rate of 0.95 K = 4 would lose 3 to 12 %."""

MAX_NUM_SPECULATIVE_TOKENS = 128
"""Limit of vLLM's rejection sampler (`vllm/v1/sample/rejection_sampler.py`, MAX_SPEC_LEN)."""

OPTIONS_KEY = "layerskip"
"""Our key in vLLM's `--additional-config`."""

EARLY_EXIT = "early_exit"
"""Option: the number of leading layers that serve; the others are not loaded."""

EXIT_LAYERS = "exit_layers"
"""Option of `self:auto`: the exits among which it chooses."""

DRAFT_VOCAB_SIZE = "draft_vocab_size"
"""Option: from how many most frequent tokens drafts are chosen."""


def is_self_model(model: object) -> bool:
    """Whether a speculative model name selects self-speculation (`self:...`)."""
    return isinstance(model, str) and model.startswith(SELF_PREFIX)


def parse_exit_layer(model: str) -> int | None:
    """Return E of `self:E`; None for `self:auto`.

    Raises:
        ValueError: `self:` is followed by neither `auto` nor a whole number of at least 1.
    """
    if model == AUTO_MODEL:
        return None
    text = model.removeprefix(SELF_PREFIX)
    if not re.fullmatch(r"[0-9]+", text) or int(text) < 1:
        raise ValueError(
            f"speculative model {model!r}: expected self:E, where E is the number of leading "
            "decoder layers that draft, a whole number of at least 1, for example self:8, or "
            f"{AUTO_MODEL}, which chooses E"
        )
    return int(text)


class Exit(NamedTuple):
    """Where drafts leave the model: after a layer, through a head."""

    layer_index: int
    """Of its layer in `exit_layers`."""
    uses_lm_head: bool = False
    """Whether it drafts with the whole LM head although there is a draft vocabulary."""


@dataclass(frozen=True)
class LayerSkipConfig:
    """One engine's self-speculation.

    Attributes:
        exit_layer: E, the number of leading decoder layers that draft; 1 <= E < num_layers. Under
            `self:auto` the one that drafts before anything is learnt.
        num_layers: L, the number of decoder layers of the target.
        exit_query_cache: Resume verification from the states that the draft stored at layer E.
            False verifies with the full forward: same output, more work; for ablation, debugging.
        adaptive: Choose K, from 0 to num_speculative_tokens, by measured times and acceptance.
            False drafts num_speculative_tokens in every step.
        draft_vocab_size: The draft chooses among this many most frequent tokens. None: all.
        draft_vocab_counts: JSON file of token counts, which rank tokens by frequency. None: rank
            them by the order of the tokenizer's merges.
        exit_layers: The exits among which each step chooses, ascending; (exit_layer,) for `self:E`.
        is_auto: Whether `self:auto` was asked for, which may have one exit too.
        head_layers: The LM head's weights, in decoder layers: what the head adds to a draft's cost.
        draft_vocab_share: Rows of the head that drafts, as a share of the LM head's.
        may_drop_vocab: Whether a step may draft with the whole LM head at `exit_layer` although
            there is a draft vocabulary: where `self:auto` chose it.
        match_rates: At each of `exit_layers`, the chance of a draft after right ones, in [0, 1], as
            far as it is known at the start; empty: not known.
    """

    exit_layer: int
    num_layers: int
    exit_query_cache: bool = True
    adaptive: bool = True
    draft_vocab_size: int | None = None
    draft_vocab_counts: str | None = None
    exit_layers: tuple[int, ...] = ()
    is_auto: bool = False
    head_layers: float = 0.0
    draft_vocab_share: float = 1.0
    may_drop_vocab: bool = False
    match_rates: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        exit_layers = self.exit_layers or (self.exit_layer,)
        for exit_layer in (self.exit_layer, *exit_layers):
            if not 1 <= exit_layer < self.num_layers:
                raise ValueError(
                    f"exit_layer={exit_layer} must be in [1, {self.num_layers - 1}] "
                    f"for a {self.num_layers}-layer target"
                )
        assert self.exit_layer in exit_layers
        assert exit_layers == tuple(sorted(set(exit_layers)))
        object.__setattr__(self, "exit_layers", exit_layers)
        for name in ("exit_query_cache", "adaptive"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f"{OPTIONS_KEY}.{name}={getattr(self, name)!r} must be true or false"
                )
        self._check_draft_vocabulary()

    def _check_draft_vocabulary(self) -> None:
        size, counts = self.draft_vocab_size, self.draft_vocab_counts
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
            raise ValueError(
                f"{OPTIONS_KEY}.draft_vocab_size={size!r} must be a whole number, for example "
                "16384; 0 stands for the whole vocabulary"
            )
        if size == 0:
            object.__setattr__(self, "draft_vocab_size", None)
            size = None
        if counts is not None and not isinstance(counts, str):
            raise ValueError(
                f"{OPTIONS_KEY}.draft_vocab_counts={counts!r} must be the path of a JSON file"
            )
        if counts is not None and size is None and not self.is_auto:
            raise ValueError(
                f"{OPTIONS_KEY}.draft_vocab_counts={counts!r} has no effect without "
                "draft_vocab_size"
            )

    @classmethod
    def from_options(
        cls,
        exit_layer: int,
        num_layers: int,
        options: Mapping[str, object],
        exit_layers: tuple[int, ...] = (),
    ) -> LayerSkipConfig:
        """Build from the target's depth and `additional_config["layerskip"]`.

        Args:
            exit_layer: E of `self:E`, or the first E of `self:auto`.
            num_layers: L.
            options: As given. Under `self:auto` the caller has read `exit_layers`.
            exit_layers: The exits of `self:auto`; empty for `self:E`.

        Raises:
            ValueError: E is out of range, or an option is unknown, has a bad value or requires
                an engine without `self:E`.
        """
        check_option_names(options)
        model = AUTO_MODEL if exit_layers else f"{SELF_PREFIX}{exit_layer}"
        if EARLY_EXIT in options:
            raise ValueError(
                f"{EARLY_EXIT}={options[EARLY_EXIT]!r} cannot be combined with "
                f"{model}: it leaves out the layers that verify; give one of them"
            )
        if EXIT_LAYERS in options and not exit_layers:
            raise ValueError(
                f"{OPTIONS_KEY}.{EXIT_LAYERS}={options[EXIT_LAYERS]!r} has no effect with {model}, "
                f"which names the exit layer; give --speculative-model {AUTO_MODEL}, or leave it "
                "out"
            )
        named = {**options, EXIT_LAYERS: exit_layers}
        return cls(exit_layer, num_layers, is_auto=bool(exit_layers), **named)  # type: ignore[arg-type]

    @property
    def model(self) -> str:
        """The speculative model's name: `self:auto` or `self:E`."""
        return AUTO_MODEL if self.is_auto else f"{SELF_PREFIX}{self.exit_layer}"

    @property
    def exit_index(self) -> int:
        """Where `exit_layer` is in `exit_layers`, and its exit in `exits`."""
        return self.exit_layers.index(self.exit_layer)

    @property
    def exits(self) -> tuple[Exit, ...]:
        """What a step chooses from: an exit per layer, then the one with the whole LM head."""
        exits = [Exit(index) for index in range(len(self.exit_layers))]
        if self.may_drop_vocab:
            exits.append(Exit(self.exit_index, uses_lm_head=True))
        return tuple(exits)

    @property
    def exit_labels(self) -> list[tuple[int, int]]:
        """Layer and size of the draft vocabulary, 0 for all tokens, of each of `exits`."""
        size = self.draft_vocab_size or 0
        return [
            (self.exit_layers[layer_index], 0 if uses_lm_head else size)
            for layer_index, uses_lm_head in self.exits
        ]

    @property
    def exit_head_layers(self) -> list[float]:
        """What the head of each of `exits` costs, in decoder layers."""
        share = self.draft_vocab_share
        return [self.head_layers * (1 if is_whole else share) for _, is_whole in self.exits]

    @property
    def exit_draft_layers(self) -> list[float]:
        """What a draft costs at each of `exits`, in decoder layers, its head included."""
        return [
            self.exit_layers[exit_.layer_index] + head
            for exit_, head in zip(self.exits, self.exit_head_layers, strict=True)
        ]

    @property
    def break_even_acceptance_rate(self) -> float:
        """The acceptance rate below which drafting costs more than it yields.

        With a head of H layers, a cycle costs 1 + K (E + H) / (L + H) full forwards and yields
        1 + rate * K tokens. E and its H are the cheapest exit's: below its rate none pays.
        """
        return min(self.exit_draft_layers) / (self.num_layers + self.head_layers)


def option_names() -> list[str]:
    """The keys that `additional_config["layerskip"]` may hold."""
    found_out = {"exit_layer", "num_layers", "is_auto", "head_layers", "match_rates"}
    found_out |= {"draft_vocab_share", "may_drop_vocab"}
    names = [field.name for field in fields(LayerSkipConfig) if field.name not in found_out]
    return [*names, EARLY_EXIT]


def check_option_names(options: object) -> None:
    """Refuse options that are not a mapping or hold an unknown key.

    Raises:
        ValueError: Names the unknown keys and lists the known ones.
    """
    if not isinstance(options, Mapping):
        raise ValueError(
            f"additional_config[{OPTIONS_KEY!r}]={options!r} must be an object, "
            f"for example {{{option_names()[0]!r}: false}}"
        )
    unknown = sorted(str(key) for key in options if key not in option_names())
    if unknown:
        raise ValueError(
            f"unknown key in additional_config[{OPTIONS_KEY!r}]: {', '.join(unknown)}; "
            f"known keys: {', '.join(option_names())}"
        )


def check_early_exit(value: object, num_layers: int | None = None) -> int:
    """Return N if a model can serve with its first N layers.

    N may be all layers, so that a sweep over N can end with the full model.

    Args:
        value: N as given.
        num_layers: Layers of the model. None: not known yet.

    Raises:
        ValueError: N is not a whole number in [1, num_layers].
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{EARLY_EXIT}={value!r} must be a whole number, for example 8")
    if num_layers is None and value < 1:
        raise ValueError(f"{EARLY_EXIT}={value} must be at least 1")
    if num_layers is not None and not 1 <= value <= num_layers:
        raise ValueError(
            f"{EARLY_EXIT}={value} must be in [1, {num_layers}] for a {num_layers}-layer model"
        )
    return value


def check_num_speculative_tokens(value: object) -> int:
    """Return K if it is a valid number of drafts per step.

    Raises:
        ValueError: K is not a whole number in [1, MAX_NUM_SPECULATIVE_TOKENS].
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not 1 <= value <= MAX_NUM_SPECULATIVE_TOKENS:  # type: ignore[operator]
        raise ValueError(
            f"num_speculative_tokens={value!r} must be a whole number in "
            f"[1, {MAX_NUM_SPECULATIVE_TOKENS}]"
        )
    return value  # type: ignore[return-value]
