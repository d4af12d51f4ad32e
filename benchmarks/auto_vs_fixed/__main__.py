"""`python -m benchmarks.auto_vs_fixed MODEL`: `self:auto` against every fixed (E, K)."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.arguments import add_process_arguments, positive, set_up_process
from benchmarks.auto_vs_fixed.figures import figures
from benchmarks.auto_vs_fixed.plan import AUTO, PLAIN, Contender, Plan
from benchmarks.auto_vs_fixed.results import Results
from benchmarks.auto_vs_fixed.subjects import (
    FINE_TUNED,
    MAX_PROMPT_TOKENS,
    SUBJECTS,
    Subject,
    prepare,
)
from benchmarks.auto_vs_fixed.tables import report
from benchmarks.auto_vs_fixed.turns import measure
from benchmarks.child import children
from benchmarks.environment import Environment, child_variables
from benchmarks.systems import FIXED, System
from layerskip_vllm.config import AUTO_MODEL, OPTIONS_KEY

logger = logging.getLogger(__name__)

MAX_MODEL_LEN = 256
"""Of every engine: the smallest checkpoint's limit."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 1 if a figure misses its goal."""
    args = parse_arguments(argv)
    set_up_process()
    subject = prepare(args.model, args.checkpoint)
    plan = make_plan(subject, args)
    args.output.mkdir(parents=True, exist_ok=True)
    base = args.output / subject.name
    identity = {"model": subject.name, "path": str(subject.path), **asdict(plan)}
    try:
        results = Results(base.with_suffix(".jsonl"), identity | {"max_drafts": args.max_drafts})
    except ValueError as error:
        raise SystemExit(str(error)) from None
    stages = [
        (batch_size, stage)
        for batch_size in args.batch_size
        for stage in plan.stages
        if not results.is_finished(batch_size, stage)
    ]
    variables = child_variables(args.preload, args.num_threads, args.bind)
    environment = json.dumps(asdict(Environment.read(variables)), indent=1)
    base.with_suffix(".environment.json").write_text(environment)
    if stages:
        log_dir = args.output / "logs" / subject.name
        log_dir.mkdir(parents=True, exist_ok=True)
        systems = make_systems(subject, plan, args)
        logger.info("%s: starting %s", subject.name, ", ".join(systems))
        with children(systems, os.environ | variables, log_dir) as started:
            measure(subject, plan, stages, started, results)
    text = report(results, plan, args.batch_size)
    base.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{subject.name}\n\n{text}\n", flush=True)
    found = [figure for size in args.batch_size for figure in figures(results, plan, size)]
    return int(any(figure.is_missed for figure in found))


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.auto_vs_fixed", description=__doc__)
    parser.add_argument("model", choices=[*SUBJECTS, FINE_TUNED])
    parser.add_argument(
        "--checkpoint", type=Path, help="folder of the fine-tuned SmolLM2 (examples/)"
    )
    parser.add_argument("--batch-size", type=positive, nargs="+", default=[1, 4])
    parser.add_argument(
        "--num-speculative-tokens", type=positive, nargs="+", default=[2, 4, 6], metavar="K"
    )
    parser.add_argument(
        "--max-drafts", type=positive, help="num_speculative_tokens of self:auto; default: its own"
    )
    length = parser.add_argument_group("how long")
    length.add_argument("--max-tokens", type=positive, default=64, help="output per request")
    length.add_argument("--num-turns", type=positive, default=4, help="of each set")
    length.add_argument("--num-cycles", type=positive, default=2, help="of the mixture")
    length.add_argument("--batches-per-phase", type=positive, default=6, metavar="N")
    length.add_argument("--screening-tokens", type=positive, default=40)
    length.add_argument("--screening-batches", type=positive, default=1, metavar="N")
    add_process_arguments(parser.add_argument_group("how every system runs"))
    parser.add_argument("--output", type=Path, default=Path("build/auto"), metavar="FOLDER")
    args = parser.parse_args(argv)
    if (args.checkpoint is not None) != (args.model == FINE_TUNED):
        parser.error(f"--checkpoint goes with the model {FINE_TUNED}, and it with --checkpoint")
    most = MAX_MODEL_LEN - MAX_PROMPT_TOKENS - max(args.num_speculative_tokens) - 1
    if max(args.max_tokens, args.screening_tokens) > most:
        parser.error(f"--max-tokens and --screening-tokens must be at most {most}")
    return args


def make_plan(subject: Subject, args: argparse.Namespace) -> Plan:
    """The texts and lengths to decode."""
    return Plan(
        exit_layers=subject.exit_layers,
        draft_lengths=sorted(set(args.num_speculative_tokens)),
        text_sets={name: texts.pays for name, texts in subject.texts.items()},
        max_tokens=args.max_tokens,
        screening_tokens=args.screening_tokens,
        screening_batches=args.screening_batches,
        num_turns=args.num_turns,
        num_cycles=args.num_cycles,
        batches_per_phase=args.batches_per_phase,
    )


def make_systems(subject: Subject, plan: Plan, args: argparse.Namespace) -> dict[str, System]:
    """The engines: plain vLLM, `self:auto`, and one for each E where pairs are measured."""
    common: dict[str, object] = {
        "model": str(subject.path),
        "dtype": subject.dtype,
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": max(args.batch_size),
        "kv_cache_memory_bytes": subject.kv_cache_bytes,
        "enforce_eager": args.eager,
        "seed": 0,
        # Prompts and outputs are token ids: tokenizing is not measured.
        "skip_tokenizer_init": True,
        # A repeated prompt would skip its prefill.
        "enable_prefix_caching": False,
    }
    auto = {} if args.max_drafts is None else {"spec_tokens": args.max_drafts}
    most = max(plan.draft_lengths)
    fixed = {"spec_tokens": most, "additional_config": {OPTIONS_KEY: dict(FIXED)}}
    special: Mapping[Contender, dict[str, object]] = {
        PLAIN: {},
        AUTO: {"spec_model": AUTO_MODEL, **auto},
    }
    contenders: Sequence[Contender] = [PLAIN, AUTO, *(plan.pairs if plan.paying else [])]
    return {
        contender.engine: System(
            contender.engine,
            "vllm",
            common | special.get(contender, {"spec_model": contender.engine, **fixed}),
        )
        for contender in contenders
    }


if __name__ == "__main__":
    raise SystemExit(main())
