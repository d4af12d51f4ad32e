"""`layerskip-vllm lens`: shows what each layer of a model predicts and suggests E and K.

`lens.py` defines the figures, `record.py` the JSON file.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from rich.console import Console

from layerskip_vllm.config import MAX_NUM_SPECULATIVE_TOKENS
from layerskip_vllm.lens.exits import num_decoder_layers
from layerskip_vllm.lens.loading import load, tokenize
from layerskip_vllm.lens.prompts import read_prompts
from layerskip_vllm.lens.ranges import parse_range
from layerskip_vllm.lens.record import LensRecord
from layerskip_vllm.lens.report import print_report
from layerskip_vllm.lens.survey import Scope, survey

DTYPES = ("float32", "bfloat16", "float16", "auto")
MIN_NUM_LAYERS = 2
MIN_MAX_TOKENS = 3
"""The first token comes from prefill and the last is never drafted."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `layerskip-vllm lens`'s arguments."""
    parser.add_argument("model", metavar="MODEL", help="checkpoint: directory or name on the hub")
    texts = parser.add_argument_group("text")
    texts.add_argument("--prompt", action="append", metavar="TEXT", help="may be repeated")
    texts.add_argument(
        "--file", type=Path, metavar="JSONL", help='one {"prompt": ...} or {"text": ...} per line'
    )
    texts.add_argument("--num-prompts", type=int, metavar="N", help="use only the first N prompts")
    texts.add_argument(
        "--max-length",
        type=int,
        default=512,
        metavar="N",
        help="tokens kept per prompt (512)",
    )
    texts.add_argument(
        "--max-tokens", type=int, default=64, metavar="N", help="tokens generated per prompt (64)"
    )
    drafts = parser.add_argument_group("self-speculation, as ranges such as 2-8 or 2,4,8")
    drafts.add_argument("--exit-layers", metavar="E", help="default: all")
    drafts.add_argument("--num-speculative-tokens", metavar="K", default="1-8", help="(1-8)")
    compute = parser.add_argument_group("computation")
    compute.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="auto: the checkpoint's (float32)"
    )
    compute.add_argument("--device", default="cpu", help="a device of torch (cpu)")
    compute.add_argument("--no-speed", action="store_true", help="skip the speed measurement")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--show-tokens", type=int, default=12, metavar="N", help="tokens in table and plot (12)"
    )
    output.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    output.add_argument("--png", type=Path, metavar="FILE", help="draw all figures")
    output.add_argument(
        "--compare",
        type=Path,
        action="append",
        metavar="JSON",
        help="overlay another run's --json file; may be repeated; needs --png",
    )
    output.add_argument("--label", help="this model's name in figures; default: MODEL's last part")


def run(args: argparse.Namespace) -> int:
    """Run the lens; returns the exit code.

    Raises:
        ValueError: An argument, a prompt or the model is unsuitable.
        OSError: A file or the model cannot be read or written.
    """
    _check(args)
    texts = read_prompts(args.prompt, args.file, args.num_prompts)
    others = [LensRecord.load(path) for path in args.compare or []]
    console = Console()
    with console.status("loading the model") as status:
        label = args.label or Path(args.model).name or args.model
        subject = load(args.model, dtype=args.dtype, device=args.device, label=label)
        scope = _scope(args, num_decoder_layers(subject.model))
        num_positions = getattr(subject.model.config, "max_position_embeddings", None)
        prompts = tokenize(
            subject.tokenizer, texts, num_positions, args.max_length, scope.max_tokens
        )
        record = survey(subject, prompts, scope, progress=status.update)
    print_report(console, record)
    if args.json:
        record.save(args.json)
        console.print(f"Figures: {args.json}", markup=False, highlight=False)
    if args.png:
        from layerskip_vllm.lens.plots import draw

        draw(record, others, args.png)
        console.print(f"Plot: {args.png}", markup=False, highlight=False)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Check arguments before minutes of computing."""
    for name, low in (("max_length", 1), ("max_tokens", MIN_MAX_TOKENS), ("show_tokens", 1)):
        if getattr(args, name) < low:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag}={getattr(args, name)} must be at least {low}")
    if args.compare and not args.png:
        raise ValueError("--compare draws into a plot: add --png FILE")
    for path in (args.json, args.png):
        if path and not path.parent.is_dir():
            raise ValueError(f"{path}: the directory {path.parent} does not exist")
    if args.png and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--png needs matplotlib: pip install layerskip-vllm[analysis]")


def _scope(args: argparse.Namespace, num_layers: int) -> Scope:
    if num_layers < MIN_NUM_LAYERS:
        raise ValueError(f"num_hidden_layers={num_layers}: the model has no layer to exit after")
    exit_layers = f"1-{num_layers - 1}" if args.exit_layers is None else args.exit_layers
    return Scope(
        exit_layers=parse_range(exit_layers, 1, num_layers - 1, "--exit-layers"),
        draft_lengths=parse_range(
            args.num_speculative_tokens, 1, MAX_NUM_SPECULATIVE_TOKENS, "--num-speculative-tokens"
        ),
        max_tokens=args.max_tokens,
        num_window_tokens=args.show_tokens,
        measure_speed=not args.no_speed,
    )
