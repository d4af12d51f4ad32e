"""Options of self-speculation and early exit, per engine and per request.

Imports no vLLM and no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

SELF_PREFIX = "self:"
"""The speculative model `self:E` is the first E layers of the target."""

AUTO_MODEL = "self:auto"
"""The speculative model whose E is chosen step by step among a few exits."""

DEFAULT_NUM_SPECULATIVE_TOKENS = 4
"""Default K. At an acceptance rate of 0.8 the layer-count model of the cost is flat between 3 and
6, and a small K loses least when acceptance is low."""

MAX_NUM_SPECULATIVE_TOKENS = 128
"""Limit of vLLM's rejection sampler (`vllm/v1/sample/rejection_sampler.py`, MAX_SPEC_LEN)."""

OPTIONS_KEY = "layerskip"
"""Our key in vLLM's `--additional-config`."""

EARLY_EXIT = "early_exit"
"""Option: the number of leading layers that serve; the others are not loaded."""

EXIT_LAYERS = "exit_layers"
"""Option of `self:auto`: the exits among which it chooses."""


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
        if not self.exit_layers:
            object.__setattr__(self, "exit_layers", (self.exit_layer,))
        self._check_draft_vocabulary()

    def _check_draft_vocabulary(self) -> None:
        size, counts = self.draft_vocab_size, self.draft_vocab_counts
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise ValueError(
                f"{OPTIONS_KEY}.draft_vocab_size={size!r} must be a whole number of at least 1, "
                "for example 16384"
            )
        if counts is not None and not isinstance(counts, str):
            raise ValueError(
                f"{OPTIONS_KEY}.draft_vocab_counts={counts!r} must be the path of a JSON file"
            )
        if counts is not None and size is None:
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
        """Where `exit_layer` is among `exit_layers`."""
        return self.exit_layers.index(self.exit_layer)

    @property
    def break_even_acceptance_rate(self) -> float:
        """The acceptance rate below which drafting costs more than it yields.

        A cycle of K drafts costs (K*E + L) / L full forwards and yields 1 + rate * K tokens, so
        K drops out: the rate must exceed E / L. E is the earliest exit's: below its rate none pays.
        """
        return self.exit_layers[0] / self.num_layers


def option_names() -> list[str]:
    """The keys that `additional_config["layerskip"]` may hold."""
    not_options = {"exit_layer", "num_layers", "is_auto", "head_layers"}
    names = [field.name for field in fields(LayerSkipConfig) if field.name not in not_options]
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


# Options per request: `SamplingParams.extra_args`, over HTTP `vllm_xargs`. The keys are flat:
# `vllm_xargs` takes only strings, numbers and lists of them, and turns booleans into 0 and 1.

LAYERSKIP_ARG = "layerskip"
"""False: decode this request plainly; others in the batch still draft."""

NUM_DRAFTS_ARG = "num_speculative_tokens"
"""Draft at most this many tokens per step for the request."""


def max_drafts_of(extra_args: Mapping[str, object] | None, num_speculative_tokens: int) -> int:
    """Return the most tokens to draft for a request in a step, in [0, num_speculative_tokens].

    Args:
        extra_args: The request's; unknown keys are ignored.
        num_speculative_tokens: K of the engine.

    Raises:
        ValueError: A value is out of range.
    """
    if not extra_args:
        return num_speculative_tokens
    layerskip = extra_args.get(LAYERSKIP_ARG, True)
    if not isinstance(layerskip, int) or layerskip not in (0, 1):
        raise ValueError(
            f"{LAYERSKIP_ARG}={layerskip!r} must be true or false; leave it out, and the engine "
            "drafts for this request"
        )
    num_drafts = extra_args.get(NUM_DRAFTS_ARG, num_speculative_tokens)
    is_whole = isinstance(num_drafts, int) and not isinstance(num_drafts, bool)
    if not is_whole or not 0 <= num_drafts <= num_speculative_tokens:  # type: ignore[operator]
        raise ValueError(
            f"{NUM_DRAFTS_ARG}={num_drafts!r} must be a whole number in "
            f"[0, {num_speculative_tokens}]; leave it out for {num_speculative_tokens}"
        )
    return num_drafts if layerskip else 0  # type: ignore[return-value]
