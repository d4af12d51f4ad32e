"""Command-line flags: other names for settings that vLLM has."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from layerskip_vllm.config import (
    DEFAULT_NUM_SPECULATIVE_TOKENS,
    check_num_speculative_tokens,
    is_self_model,
    parse_exit_layer,
)

if TYPE_CHECKING:
    from vllm.utils.argparse_utils import FlexibleArgumentParser


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


def _speculative_model(value: str) -> str:
    if is_self_model(value):
        try:
            parse_exit_layer(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return value


def _num_speculative_tokens(value: str) -> int:
    try:
        return check_num_speculative_tokens(int(value) if value.lstrip("-").isdigit() else value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_cli_args(parser: FlexibleArgumentParser) -> FlexibleArgumentParser:
    """Add `--speculative-model` and `--num-speculative-tokens`, which set what vLLM's
    `--spec-model` and `--spec-tokens` set (`EngineArgs.spec_model`, `EngineArgs.spec_tokens`).
    """
    for action in parser._actions:
        if action.dest in ("spec_model", "spec_tokens"):
            action.__class__ = _StoreOnce  # it may come after ours, and must not silence it
    group = parser.add_argument_group(
        title="LayerSkip", description="Self-speculative decoding (arXiv 2404.16710)."
    )
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
        type=_num_speculative_tokens,
        action=_StoreOnce,
        default=argparse.SUPPRESS,
        help="Tokens drafted per step, as --spec-tokens. With self:E the default is "
        f"{DEFAULT_NUM_SPECULATIVE_TOKENS}.",
    )
    return parser
