"""`make demo`: a model served plainly and with self-speculation, compared prompt by prompt."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from layerskip_vllm.demo.models import MODELS, DemoModel, Prompt
from layerskip_vllm.demo.report import Completion, report, texts_equal
from layerskip_vllm.measure.server import Server, serve


def engine_flags(model: DemoModel) -> tuple[str, ...]:
    """What both servers are started with."""
    return (
        *("--dtype", "float32"),
        "--enforce-eager",
        *("--max-model-len", str(model.max_model_len)),
        *("--max-num-seqs", "8"),
        *("--kv-cache-memory-bytes", str(256 << 20)),
        *("--seed", "0"),
        *("--served-model-name", model.name),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `layerskip-vllm demo`'s arguments."""
    parser.add_argument("--model", choices=MODELS, default="python-10m")
    parser.add_argument("--exit-layer", type=int, metavar="E", help="default: what suits the model")
    parser.add_argument("--num-speculative-tokens", type=int, metavar="K", default=4)
    parser.add_argument("--num-prompts", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=96, help="tokens per prompt")


def run(args: argparse.Namespace) -> int:
    """Run the demo; returns the exit code: 0 where every text equals plain decoding's."""
    # As Ctrl-C does: unwind, and so stop the server, instead of dying on the spot.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("layerskip_vllm").setLevel(logging.INFO)
    console = Console()
    model = MODELS[args.model]
    console.print(f"[bold]{model.name}[/]: {model.description}")
    checkpoint = str(model.prepare())
    prompts = model.prompts()[: args.num_prompts]
    self_flags = (
        *("--speculative-model", f"self:{args.exit_layer or model.exit_layer}"),
        *("--num-speculative-tokens", str(args.num_speculative_tokens)),
    )
    try:
        with tempfile.TemporaryDirectory(prefix="layerskip-demo-") as directory:
            plain, speculated = (
                _run(console, model, checkpoint, flags, prompts, args.max_tokens, Path(directory))
                for flags in ((), self_flags)
            )
    except KeyboardInterrupt:
        console.print("\nInterrupted; the server is stopped.")
        return 130
    report(console, prompts, plain, speculated)
    console.print(model.remark)
    return 0 if texts_equal(plain, speculated) else 1


def _run(
    console: Console,
    model: DemoModel,
    checkpoint: str,
    flags: tuple[str, ...],
    prompts: list[Prompt],
    max_tokens: int,
    logs: Path,
) -> list[Completion]:
    """Serve with these flags and stream every prompt through the `openai` client."""
    console.print(f"\n[bold]vllm serve ... {' '.join(flags) or '(plain)'}[/]")
    started = time.perf_counter()
    log = logs / f"server{len(flags)}.log"
    with (
        console.status("starting the server ..."),
        serve(checkpoint, *engine_flags(model), *flags, log=log, env=dict(os.environ)) as server,
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
            for prompt in prompts:
                task = progress.add_task(prompt.name, total=max_tokens)
                completions.append(_complete(server, model, prompt, max_tokens, progress, task))
        return completions


def _complete(
    server: Server,
    model: DemoModel,
    prompt: Prompt,
    max_tokens: int,
    progress: Progress,
    task: object,
) -> Completion:
    before = _spec_decode_counters(server)
    pieces, num_tokens = [], 0
    started = time.perf_counter()
    stream = server.client.completions.create(
        model=model.name,
        prompt=prompt.text,
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
