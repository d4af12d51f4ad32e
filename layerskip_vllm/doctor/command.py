"""`layerskip-vllm doctor [MODEL]`: whether this installation will serve, and how."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

from rich.console import Console
from rich.markup import escape

from layerskip_vllm.doctor.checks import Check, will_run
from layerskip_vllm.doctor.installation import check_installation, versions

TAKES_OTHER_ARGUMENTS = True
"""Flags of `vllm serve`."""

MARKS = {"ok": "[green]ok  [/]", "warn": "[yellow]warn[/]", "fail": "[bold red]FAIL[/]"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `layerskip-vllm doctor`'s arguments."""
    parser.usage = "layerskip-vllm doctor [-h] [--json] [MODEL [FLAGS OF vllm serve ...]]"
    parser.add_argument("model", nargs="?", metavar="MODEL", help="checkpoint, or hub name")
    parser.add_argument("--json", action="store_true", help="for programs and bug reports")


def run(args: argparse.Namespace) -> int:
    """Check; returns the exit code: 0 where nothing fails, else 1.

    Raises:
        ValueError: There are flags, and no model.
    """
    if args.others and args.model is None:
        raise ValueError(f"give MODEL before the flags of vllm serve: {' '.join(args.others)}")
    # vLLM's log goes to stdout, where the report is.
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    checks = _checks(args.model, args.others)
    if args.json:
        found = list(checks)
        report = {
            "will_run": will_run(found),
            "model": args.model,
            "flags": args.others,
            "versions": versions(),
            "checks": [asdict(check) for check in found],
        }
        print(json.dumps(report, indent=2))
    else:
        found = _print(checks, args.model)
    return 0 if will_run(found) else 1


def _checks(model: str | None, flags: Sequence[str]) -> Iterator[Check]:
    found = []
    for check in check_installation():
        found.append(check)
        yield check
    if model is not None and will_run(found):
        from layerskip_vllm.doctor.engine import check_engine

        yield from check_engine(model, flags)


def _print(checks: Iterable[Check], model: str | None) -> list[Check]:
    """Print each check as it ends, then the conclusion."""
    console = Console(highlight=False, soft_wrap=True)
    found: list[Check] = []
    for check in checks:
        if not found or found[-1].section != check.section:
            console.print(f"\n[bold]{check.section}[/]")
        console.print(f"  {MARKS[check.status]} {check.name}: {escape(check.found)}")
        if check.advice:
            console.print(f"       {escape(check.advice)}", style="dim")
        found.append(check)
    console.print()
    if not will_run(found):
        console.print("[bold red]It will not run.[/] FAIL above says why.")
    elif model is None:
        console.print("The installation is fine. layerskip-vllm doctor MODEL checks a model too.")
    else:
        console.print("It will run. No weights were loaded, and no speed was measured.")
    return found
