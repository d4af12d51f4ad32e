"""Arguments of `layerskip-vllm sweep`, checked before anything is measured."""

from __future__ import annotations

import argparse
import importlib.util
import os
from pathlib import Path

from layerskip_vllm.checkpoint.settings import CONFIG_FILE, read_config
from layerskip_vllm.config import MAX_NUM_SPECULATIVE_TOKENS
from layerskip_vllm.lens.ranges import parse_range
from layerskip_vllm.lens.text import evenly_spaced
from layerskip_vllm.sweep.plan import Plan
from layerskip_vllm.sweep.subject import Subject

MIN_MAX_TOKENS = 8
"""The first token comes from prefill, and the step that ends a request is not counted."""
MIN_NUM_LAYERS = 2
NUM_DEFAULT_EXITS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `layerskip-vllm sweep`'s arguments."""
    parser.add_argument("model", metavar="MODEL", help="checkpoint: directory or name on the hub")
    _add_text(parser.add_argument_group("text"))
    _add_grid(parser.add_argument_group("what to measure; E and K as ranges such as 2-8 or 2,4,8"))
    engines = parser.add_argument_group("engines")
    engines.add_argument(
        "--vllm-flags",
        nargs=argparse.REMAINDER,  # they begin with dashes, which ends any other list
        default=[],
        metavar="FLAGS",
        help="give this last: all that follow are flags of vllm serve for every engine, such as "
        "--dtype bfloat16 --enforce-eager",
    )
    engines.add_argument(
        "--keep-engines",
        action="store_true",
        help="keep all engines in memory: faster and less noisy, for small models",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder of results, table, heat map and logs; a rerun goes on from there "
        "(sweep-MODEL)",
    )
    output.add_argument(
        "--save", action="store_true", help="write the best exits and K into MODEL/config.json"
    )


def _add_text(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--prompts",
        type=Path,
        required=True,
        metavar="JSONL",
        help='one {"prompt": ...} or {"text": ...} per line, such as your users send',
    )
    group.add_argument("--num-prompts", type=int, metavar="N", help="use only the first N prompts")
    group.add_argument(
        "--max-length", type=int, default=512, metavar="N", help="tokens kept per prompt (512)"
    )
    group.add_argument(
        "--max-tokens", type=int, default=128, metavar="N", help="tokens generated per prompt (128)"
    )
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="(0)")


def _add_grid(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--exit-layers", metavar="E", help="default: four, up to half of the layers")
    group.add_argument("--num-speculative-tokens", metavar="K", default="1,2,4,6", help="(1,2,4,6)")
    group.add_argument(
        "--draft-vocab-size",
        type=int,
        nargs="+",
        default=[0],
        metavar="N",
        help="sizes of the draft vocabulary; 0 is the whole vocabulary (0)",
    )
    group.add_argument(
        "--draft-vocab-counts", metavar="JSON", help="token counts that rank the draft vocabulary"
    )
    group.add_argument(
        "--batch-size",
        type=int,
        nargs="+",
        default=[1],
        metavar="N",
        help="concurrent requests (1)",
    )
    group.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="each measures everything once (3)"
    )


def check_arguments(args: argparse.Namespace) -> None:
    """Check what needs no model.

    Raises:
        ValueError: Names the flag, its value and the range.
    """
    lows = {"max_length": 1, "max_tokens": MIN_MAX_TOKENS, "rounds": 1, "temperature": 0}
    for name, low in lows.items():
        if not getattr(args, name) >= low:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag}={getattr(args, name)} must be at least {low}")
    for batch_size in args.batch_size:
        if batch_size < 1:
            raise ValueError(f"--batch-size={batch_size} must be at least 1")
    if args.draft_vocab_counts is not None and not any(args.draft_vocab_size):
        raise ValueError("--draft-vocab-counts has no effect without --draft-vocab-size")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("the heat map needs matplotlib: pip install layerskip-vllm[analysis]")
    if args.save:
        _check_writable(Path(args.model))


def _check_writable(folder: Path) -> None:
    if not (folder / CONFIG_FILE).is_file():
        raise ValueError(
            f"--save writes into {CONFIG_FILE}, and MODEL={str(folder)!r} is not a local "
            "checkpoint folder: download it first"
        )
    read_config(folder / CONFIG_FILE)  # what it knows of exits so far may be bad: it is replaced
    if not os.access(folder, os.W_OK):
        raise ValueError(f"--save: {folder} is not writable")


def plan_of(args: argparse.Namespace, subject: Subject) -> Plan:
    """Make the plan.

    Raises:
        ValueError: An exit, K or a vocabulary does not fit the model.
    """
    if subject.num_layers < MIN_NUM_LAYERS:
        raise ValueError(
            f"num_hidden_layers={subject.num_layers}: the model has no layer to exit after"
        )
    last = subject.num_layers - 1
    sizes = list(dict.fromkeys(args.draft_vocab_size))
    for size in sizes:
        if not 0 <= size <= subject.vocab_size:
            raise ValueError(
                f"--draft-vocab-size={size} must be in [0, {subject.vocab_size}], where 0 is the "
                "whole vocabulary"
            )
    if args.exit_layers is None:
        half = max(subject.num_layers // 2, 1)
        first = max(half // NUM_DEFAULT_EXITS, 1)
        exit_layers = list(dict.fromkeys(evenly_spaced(first, half, NUM_DEFAULT_EXITS)))
    else:
        exit_layers = parse_range(args.exit_layers, 1, last, "--exit-layers")
    return Plan(
        exit_layers=exit_layers,
        draft_lengths=parse_range(
            args.num_speculative_tokens, 1, MAX_NUM_SPECULATIVE_TOKENS, "--num-speculative-tokens"
        ),
        draft_vocab_sizes=[size or None for size in sizes],
        batch_sizes=sorted(set(args.batch_size)),
        num_rounds=args.rounds,
    )
