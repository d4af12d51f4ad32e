"""`layerskip-vllm`: trains, examines, measures, shows and checks LayerSkip self-speculation."""

from __future__ import annotations

import argparse
import importlib
import sys

COMMANDS = {
    "train": ("layerskip_vllm.training.command", "train a LayerSkip checkpoint from a recipe"),
    "lens": ("layerskip_vllm.lens.command", "show what each layer of a model predicts"),
    "sweep": ("layerskip_vllm.sweep.command", "measure which exit layer and K are fastest"),
    "doctor": ("layerskip_vllm.doctor.command", "say whether this installation will serve a model"),
    "demo": ("layerskip_vllm.demo.command", "serve a model plainly and with self-speculation"),
}
"""Subcommand -> (module with `add_arguments(parser)` and `run(args) -> int`, one line of help).

Only the module of the given subcommand is imported.
"""


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; returns the exit code, 2 for bad input."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="layerskip-vllm", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=text, description=text)
        if argv[:1] == [name]:
            command = importlib.import_module(module)
            command.add_arguments(subparser)
    args, others = parser.parse_known_args(argv)
    args.others = others
    if others and not getattr(command, "TAKES_OTHER_ARGUMENTS", False):
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    try:
        return command.run(args)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except ValueError as error:
        reason = str(error)
    print(f"layerskip-vllm {args.command}: {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
