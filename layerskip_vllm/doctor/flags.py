"""The flags of `vllm serve`, read by vLLM's own parser."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from vllm.utils.argparse_utils import FlexibleArgumentParser


def serve_parser() -> FlexibleArgumentParser:
    """The parser of `vllm`, with `serve` alone; it raises ValueError where it would exit."""
    return _parsers()[0]


def _parsers() -> tuple[FlexibleArgumentParser, FlexibleArgumentParser]:
    """That parser, and the one of `serve` within it."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ValueError(message)

    parser = Parser(prog="vllm")
    return parser, ServeSubcommand().subparser_init(parser.add_subparsers())


def parse_flags(model: str, flags: Sequence[str]) -> argparse.Namespace:
    """Parse `vllm serve MODEL FLAGS`.

    Raises:
        ValueError: A flag is unknown, or its value is bad.
    """
    arguments = serve_parser().parse_args(["serve", model, *flags])
    arguments.model = arguments.model_tag
    return arguments


def advice_on(flags: Sequence[str]) -> str:
    """Name a similar flag for each unknown one; if there is none, how to list all flags."""
    _, parser = _parsers()
    known = {option for action in parser._actions for option in action.option_strings}
    given = [flag.partition("=")[0].replace("_", "-") for flag in flags if flag.startswith("--")]
    close = [
        f"did you mean {match}?"
        for flag in given
        # vLLM also takes --no-..., and keys of a JSON option after a point.
        if flag.partition(".")[0] not in known
        for match in get_close_matches(flag, known, n=1)
    ]
    return " ".join(close) or "vllm serve --help lists the flags"
