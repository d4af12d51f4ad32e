"""Command-line flags: additional names for vLLM's settings."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from layerskip_vllm.config import (
    DEFAULT_AUTO_TOKENS,
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

    If one flag is repeated, the last value wins, as in argparse: so the command line overrides
    vLLM's `--config` file.
    """

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        key = f"_{self.dest}_set_by"
        set_by, stored = getattr(namespace, key, option_string), getattr(namespace, self.dest)
        if set_by != option_string and stored != values:
            parser.error(f"{option_string} {values} contradicts {set_by} {stored}")
        setattr(namespace, key, option_string)
        setattr(namespace, self.dest, values)


class _StoreOptions(argparse.Action):
    """Stores `--early-exit` inside `--additional-config`, in either order of the two flags.

    If one flag is repeated, its last value wins, as in argparse.
    """

    def __call__(self, parser, namespace, values, option_string=None):  # type: ignore[no-untyped-def]
        given = vars(namespace).setdefault(f"_{self.dest}_set_by", {})
        given[option_string] = values
        additional = given.get(ADDITIONAL_CONFIG, {})
        if EARLY_EXIT_FLAG in given:
            try:
                additional = _with_early_exit(additional, given[EARLY_EXIT_FLAG])
            except ValueError as error:
                parser.error(str(error))
        setattr(namespace, self.dest, additional)


SHARED_SETTINGS = {
    "spec_model": _StoreOnce,
    "spec_tokens": _StoreOnce,
    "additional_config": _StoreOptions,
}
"""vLLM's settings that get a second flag -> the action with which both flags store their value."""


def _with_early_exit(additional: object, early_exit: int) -> dict:
    """Return the value of `--additional-config` with the option added.

    Raises:
        ValueError: It already holds another value, or it is not an object.
    """
    if not isinstance(additional, Mapping):
        raise ValueError(f"{ADDITIONAL_CONFIG} {additional} must be an object")
    options = additional.get(OPTIONS_KEY, {})
    check_option_names(options)
    if options.get(EARLY_EXIT, early_exit) != early_exit:
        raise ValueError(
            f"{EARLY_EXIT_FLAG} {early_exit} contradicts {ADDITIONAL_CONFIG}, which sets "
            f"{OPTIONS_KEY}.{EARLY_EXIT}={options[EARLY_EXIT]!r}; give it once"
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
    """Return an argparse type: a whole number that passes the configuration's check."""

    def parse(value: str) -> int:
        try:
            return check(int(value) if re.fullmatch(r"-?[0-9]+", value) else value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def add_cli_args(parser: FlexibleArgumentParser) -> FlexibleArgumentParser:
    """Add our flags to vLLM's parser.

    Only fields of `EngineArgs` reach the engine, so each flag sets one of vLLM's:
    `--speculative-model` sets `--spec-model`, `--num-speculative-tokens` sets `--spec-tokens`, and
    `--early-exit` sets a key of `--additional-config`.
    """
    for action in parser._actions:
        if action.dest in SHARED_SETTINGS:
            # vLLM's flag may follow ours and must not override it silently.
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
        metavar="self:E|self:auto",
        type=_speculative_model,
        action=_StoreOnce,
        default=argparse.SUPPRESS,
        help="self:E drafts with the first E decoder layers of the model and verifies with the "
        "others: no second model, same output. self:auto chooses E while it serves. Any other "
        "value names a draft model, as in --spec-model.",
    )
    group.add_argument(
        "--num-speculative-tokens",
        dest="spec_tokens",
        metavar="K",
        type=_whole_number(check_num_speculative_tokens),
        action=_StoreOnce,
        default=argparse.SUPPRESS,
        help="Tokens drafted per step; same as --spec-tokens. Default with self:E: "
        f"{DEFAULT_NUM_SPECULATIVE_TOKENS}; with self:auto what the checkpoint names, else "
        f"{DEFAULT_AUTO_TOKENS}.",
    )


def _add_early_exit(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        EARLY_EXIT_FLAG,
        dest="additional_config",
        metavar="N",
        type=_whole_number(check_early_exit),
        action=_StoreOptions,
        default=argparse.SUPPRESS,
        help="Serve with only the first N decoder layers, the final norm and the LM head. The "
        "other layers are not loaded and nothing verifies. Same as "
        "--additional-config.layerskip.early_exit N.",
    )
