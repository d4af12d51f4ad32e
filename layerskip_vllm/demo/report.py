"""What the demo shows of its two runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from layerskip_vllm.demo.models import Prompt

SHOWN_LINES = 14
"""Lines of a completion that are shown side by side."""


@dataclass
class Completion:
    """One prompt's outcome: text, tokens, seconds, and vLLM's speculative-decoding counters."""

    text: str
    num_tokens: int
    seconds: float
    num_drafts: float
    num_drafted: float
    num_accepted: float


def texts_equal(plain: Sequence[Completion], speculated: Sequence[Completion]) -> bool:
    """Whether every prompt's two texts are the same."""
    return all(one.text == other.text for one, other in zip(plain, speculated, strict=True))


def report(
    console: Console,
    prompts: Sequence[Prompt],
    plain: Sequence[Completion],
    speculated: Sequence[Completion],
) -> None:
    """Show one text of both runs, a table with a row a prompt, and what they add up to."""
    console.print(_side_by_side(prompts[0], plain[0], speculated[0]))
    title = "Self-speculative against plain decoding, float32, greedy"
    table = Table(title=title, box=box.SIMPLE, padding=0)
    # At 80 columns, the width of what is no terminal, the figures stay whole.
    table.add_column("prompt", overflow="ellipsis", no_wrap=True, max_width=24)
    for name in ("tokens", "plain tok/s", "self tok/s", "speed-up", "accepted", "length", "same"):
        table.add_column(name, justify="right", min_width=max(6, *map(len, name.split())))
    for prompt, one, other in zip(prompts, plain, speculated, strict=True):
        table.add_row(prompt.name, *_row([one], [other]))
    table.add_section()
    table.add_row("all", *_row(plain, speculated), style="bold")
    console.print(table)
    console.print(
        "accepted: acceptance rate, accepted / drafted tokens; length: mean acceptance length, "
        "bonus token included."
    )
    console.print(
        "Every text equals plain decoding's."
        if texts_equal(plain, speculated)
        else "[bold red]A text differs from plain decoding's: that is a bug.[/]"
    )


def _side_by_side(prompt: Prompt, one: Completion, other: Completion) -> Columns:
    tail = "\n".join(prompt.text.splitlines()[-4:])
    panels = []
    for title, completion in (("plain", one), ("self-speculative", other)):
        lines = completion.text.split("\n")[:SHOWN_LINES]
        text = f"[dim]{_escape(tail)}[/]{_escape(chr(10).join(lines))}"
        panels.append(Panel(text, title=title, width=56))
    return Columns(panels)


def _escape(text: str) -> str:
    return text.replace("[", "\\[")


def _row(plain: Sequence[Completion], speculated: Sequence[Completion]) -> list[str]:
    """One row of the table, over one prompt or all."""
    plain_speed, self_speed = (
        sum(each.num_tokens for each in some) / sum(each.seconds for each in some)
        for some in (plain, speculated)
    )
    num_drafts, num_drafted, num_accepted = (
        sum(getattr(each, name) for each in speculated)
        for name in ("num_drafts", "num_drafted", "num_accepted")
    )
    return [
        str(sum(each.num_tokens for each in speculated)),
        f"{plain_speed:.1f}",
        f"{self_speed:.1f}",
        f"{self_speed / plain_speed:.2f}",
        f"{100 * num_accepted / max(num_drafted, 1):.0f} %",
        f"{1 + num_accepted / max(num_drafts, 1):.2f}",
        "yes" if texts_equal(plain, speculated) else "[bold red]NO[/]",
    ]
