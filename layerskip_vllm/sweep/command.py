"""`layerskip-vllm sweep`: measures exits and drafts on real vLLM and names the fastest pair."""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from layerskip_vllm.checkpoint.settings import CONFIG_FILE, write_settings
from layerskip_vllm.lens.prompts import read_prompts
from layerskip_vllm.sweep.arguments import add_arguments, check_arguments, plan_of
from layerskip_vllm.sweep.engine_process import EngineError
from layerskip_vllm.sweep.plan import Plan
from layerskip_vllm.sweep.report import conclusions, markdown, print_tables
from layerskip_vllm.sweep.results import ResultsFile
from layerskip_vllm.sweep.run import Decode, run_sweep
from layerskip_vllm.sweep.subject import Subject, digest, load_subject, versions
from layerskip_vllm.sweep.summary import Summary, serve_command

__all__ = ["add_arguments", "run"]

RESULTS_FILE, MARKDOWN_FILE, PNG_FILE = "results.jsonl", "sweep.md", "sweep.png"
INTERRUPTED = 130


def run(args: argparse.Namespace) -> int:
    """Run the sweep; returns the exit code.

    Raises:
        ValueError: An argument, a prompt, the model or the results file is unsuitable.
        OSError: A file or the model cannot be read or written.
    """
    # As Ctrl-C does: unwind, and so end the engines, instead of dying on the spot.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    check_arguments(args)
    console = Console()
    texts = read_prompts(None, args.prompts, args.num_prompts)
    with console.status("reading the model's configuration"):
        subject = load_subject(args.model, texts, args.max_length, args.max_tokens)
    plan = plan_of(args, subject)
    decode = _decode_of(args)
    folder = args.output or Path(f"sweep-{subject.label}")
    folder.mkdir(parents=True, exist_ok=True)
    identity = _identity(args, subject)
    results = ResultsFile(folder / RESULTS_FILE, identity)
    try:
        if any(plan.draft_vocab_sizes):
            results.check_counts(decode.counts_digest)
        code = _measure(plan, subject, decode, results, console)
    finally:
        results.close()
    if code:
        return code
    summary = Summary(results.measurements)
    _write(folder, subject, summary, identity, _command(args, summary))
    print_tables(console, subject.label, summary)
    _say(console, f"Figures: {folder / MARKDOWN_FILE}, {folder / PNG_FILE}\n")
    for line in conclusions(summary):
        _say(console, line)
    code = _save(args, subject, summary, console) if args.save else 0
    _say(console, f"\n{_command(args, summary)}")
    return code


def _measure(
    plan: Plan, subject: Subject, decode: Decode, results: ResultsFile, console: Console
) -> int:
    """Measure what is missing; returns the exit code, and says how to go on if it is not 0."""
    wanted = plan.turns()

    def num_done() -> int:
        return len({entry.turn for entry in results.measurements} & set(wanted))

    _say(console, f"{num_done()} of {len(wanted)} measurements are in {results.path}.")
    try:
        if num_done() < len(wanted):
            run_sweep(plan, subject, decode, results, console)
        return 0
    except KeyboardInterrupt:
        _say(console, "\nInterrupted; the engines are stopped.")
        code = INTERRUPTED
    except EngineError as error:
        _say(console, f"\n{error}", style="red")
        code = 1
    _say(
        console,
        f"{num_done()} of {len(wanted)} measurements are in {results.path}: "
        "the same command goes on from there.",
    )
    return code


def _write(
    folder: Path, subject: Subject, summary: Summary, identity: Mapping[str, object], command: str
) -> None:
    """Write the table and the heat map."""
    from layerskip_vllm.sweep.heat_map import draw

    page = markdown(subject.label, summary, identity, command)
    (folder / MARKDOWN_FILE).write_text(page, encoding="utf-8")
    draw(subject.label, summary, _footer(identity, summary), folder / PNG_FILE)


def _save(args: argparse.Namespace, subject: Subject, summary: Summary, console: Console) -> int:
    settings = summary.settings(subject.num_layers)
    if settings is None:
        _say(console, f"--save: {CONFIG_FILE} is unchanged, since no pair beats plain vLLM.")
        return 1
    write_settings(Path(args.model), settings)
    value = json.dumps(settings.to_json())
    _say(console, f"Saved in {Path(args.model) / CONFIG_FILE}: layerskip: {value}")
    return 0


def _command(args: argparse.Namespace, summary: Summary) -> str:
    """The command that serves the best pair, or plain vLLM where no pair beats it."""
    best = summary.best_overall
    pays = best is not None and (summary.mean_speedup(best) or 0) > 1
    return serve_command(
        args.model,
        best if pays else None,
        args.vllm_flags,
        args.draft_vocab_counts,
    )


def _footer(identity: Mapping[str, object], summary: Summary) -> str:
    rounds = summary.plain(summary.batch_sizes[0]).num_rounds
    return (
        f"Median of {rounds} rounds, {identity['num_prompts']} prompts, "
        f"{identity['max_tokens']} tokens each, on {', '.join(sorted(summary.devices))}"
    )


def _say(console: Console, text: str, style: str | None = None) -> None:
    """Print a line that ends where the text ends, so that a command can be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True, style=style)


def _decode_of(args: argparse.Namespace) -> Decode:
    counts = args.draft_vocab_counts
    return Decode(
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        vllm_flags=args.vllm_flags,
        draft_vocab_counts=counts,
        counts_digest=counts and digest(Path(counts).read_text(encoding="utf-8")),
        keep_engines=args.keep_engines,
    )


def _identity(args: argparse.Namespace, subject: Subject) -> dict[str, object]:
    """What all lines of a results file share."""
    return {
        "model": subject.label,
        "fingerprint": subject.fingerprint,
        "prompts": digest(subject.prompts),
        "num_prompts": len(subject.prompts),
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "vllm_flags": args.vllm_flags,
        "versions": versions(),
    }
