"""Command-line flags: other names for settings that vLLM has."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from layerskip_vllm.config import (
    DEFAULT_NUM_SPECULATIVE_TOKENS,
    EARLY_EXIT,
    OPTIONS_KEY,
    check_early_exit,
    check_num_speculative_tokens,
    check_option_names,
    is_self_model,
    parse_exit_layer,
)

if TYPE_CHECKING:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

ADDITIONAL_CONFIG = "--additional-config"
EARLY_EXIT_FLAG = "--early-exit"


class _StoreOnce(argparse.Action):
    """Stores like argparse's `store`, but refuses two flags that disagree on one setting.

    One flag repeated is argparse's own business, the last value wins: a value on the command line
    overrides one in vLLM's `--config` file that way.
    """

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        key = f"_{self.dest}_said_by"
        said_by, already = getattr(namespace, key, option_string), getattr(namespace, self.dest)
        if said_by != option_string and already != values:
            parser.error(f"{option_string} {values} contradicts {said_by} {already}")
        setattr(namespace, key, option_string)
        setattr(namespace, self.dest, values)


class _StoreOptions(argparse.Action):
    """Stores `--early-exit` inside `--additional-config`, whichever of the two comes first.

    One flag repeated replaces itself only, as with argparse's `store`.
    """

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        said = vars(namespace).setdefault(f"_{self.dest}_said_by", {})
        said[option_string] = values
        additional = said.get(ADDITIONAL_CONFIG, {})
        if EARLY_EXIT_FLAG in said:
            try:
                additional = _with_early_exit(additional, said[EARLY_EXIT_FLAG])
            except ValueError as error:
                parser.error(str(error))
        setattr(namespace, self.dest, additional)


SHARED_SETTINGS = {
    "spec_model": _StoreOnce,
    "spec_tokens": _StoreOnce,
    "additional_config": _StoreOptions,
}
"""Settings of vLLM's for which we add a second flag, and how both flags store their value."""


def _with_early_exit(additional: object, early_exit: int) -> dict:
    """What `--additional-config` says, with the option added.

    Raises:
        ValueError: It says another value, or is nothing to which an option can be added.
    """
    if not isinstance(additional, Mapping):
        raise ValueError(f"{ADDITIONAL_CONFIG} {additional} must be an object")
    options = additional.get(OPTIONS_KEY, {})
    check_option_names(options)
    if options.get(EARLY_EXIT, early_exit) != early_exit:
        raise ValueError(
            f"{EARLY_EXIT_FLAG} {early_exit} contradicts {ADDITIONAL_CONFIG}, which sets "
            f"{OPTIONS_KEY}.{EARLY_EXIT}={options[EARLY_EXIT]!r}; say it once"
        )
    return {**additional, OPTIONS_KEY: {EARLY_EXIT: early_exit, **options}}


def _speculative_model(value: str) -> str:
    if is_self_model(value):
        try:
            parse_exit_layer(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return value


def _whole_number(check: Callable[[object], int]) -> Callable[[str], int]:
    """An argparse type: the whole number that passes a check of the configuration's."""

    def parse(value: str) -> int:
        try:
            return check(int(value) if re.fullmatch(r"-?[0-9]+", value) else value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def add_cli_args(parser: FlexibleArgumentParser) -> FlexibleArgumentParser:
    """Add our flags, each of which sets what one of vLLM's sets: `--speculative-model` what
    `--spec-model` does, `--num-speculative-tokens` what `--spec-tokens` does, and `--early-exit`
    a part of `--additional-config`. Only fields of `EngineArgs` reach the engine.
    """
    for action in parser._actions:
        if action.dest in SHARED_SETTINGS:
            # vLLM's flag may come after ours, and must not silence it.
            action.__class__ = SHARED_SETTINGS[action.dest]
    group = parser.add_argument_group(
        title="LayerSkip",
        description="Self-speculative decoding and early exit (arXiv 2404.16710).",
    )
    _add_self_speculation(group)
    _add_early_exit(group)
    return parser


def _add_self_speculation(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--speculative-model",
        dest="spec_model",
        metavar="self:E",
        type=_speculative_model,
        action=_StoreOnce,
        default=argparse.SUPPRESS,
        help="self:E drafts with the model's own first E decoder layers and verifies with the "
        "rest: no second model, the same output. Any other value is a draft model, as in "
        "--spec-model.",
    )
    group.add_argument(
        "--num-speculative-tokens",
        dest="spec_tokens",
        metavar="K",
        type=_whole_number(check_num_speculative_tokens),
        action=_StoreOnce,
        default=argparse.SUPPRESS,
        help="Tokens drafted per step, as --spec-tokens. With self:E the default is "
        f"{DEFAULT_NUM_SPECULATIVE_TOKENS}.",
    )


def _add_early_exit(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        EARLY_EXIT_FLAG,
        dest="additional_config",
        metavar="N",
        type=_whole_number(check_early_exit),
        action=_StoreOptions,
        default=argparse.SUPPRESS,
        help="Serve with the first N decoder layers, the final norm and the LM head alone: the "
        "other layers are not loaded and nothing verifies. As "
        "--additional-config.layerskip.early_exit N.",
    )
