"""What the demo says about its rounds: the table, what was measured, and a picture of both."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from layerskip_vllm.demo.comparison import Figures, Round
from layerskip_vllm.demo.models import Prompt

PICTURE_COLUMNS = 100

SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
  font-size: {char_height}px;
  line-height: {line_height}px;
  font-family: ui-monospace, Menlo, Consolas, monospace;
}}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""
"""As rich's own template, without the fonts that it loads from a third party."""


def report(method: str, prompts: Sequence[Prompt], name: str, rounds: Sequence[Round]) -> Group:
    """The table, its result in a sentence, and what was measured.

    Args:
        method: What was measured, in one sentence.
        prompts: Of each round.
        name: Such as "self:auto".
        rounds: At least one.
    """
    figures = Figures.of(rounds)
    speed_up = figures.speed_up
    verdict = (
        f"[bold]{name} streams {speed_up.median:.2f}x as many tokens/s as plain vLLM[/] "
        f"(quartiles {speed_up.low_quartile:.2f} to {speed_up.high_quartile:.2f}, "
        f"range {speed_up.min:.2f} to {speed_up.max:.2f})."
    )
    sameness = (
        "Every text equals plain decoding's."
        if figures.same_text
        else "[bold red]A text differs from plain decoding's: that is a bug.[/]"
    )
    return Group(
        _table(prompts, name, rounds),
        Text.from_markup(f"\n{verdict}\n{sameness}\n"),
        Text(method, style="dim"),
    )


def save_picture(path: Path, *parts: RenderableType) -> None:
    """Write an SVG that shows the parts one below the other."""
    console = Console(
        record=True,
        width=PICTURE_COLUMNS,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
    )
    for part in parts:
        console.print(part)
    console.save_svg(str(path), title="layerskip-vllm demo", code_format=SVG)


def _table(prompts: Sequence[Prompt], name: str, rounds: Sequence[Round]) -> Table:
    """A row for each prompt and one for all together."""
    table = Table(box=box.SIMPLE, padding=0, expand=True, caption_justify="left")
    table.add_column("prompt", overflow="ellipsis", no_wrap=True, ratio=1)
    # Two lines, so that at 80 columns, the width of what is no terminal, the figures stay whole.
    headers = ("tokens", "plain\ntok/s", f"{name}\ntok/s", "speed-up", "accepted", "length")
    for header in (*headers, "same\ntext"):
        table.add_column(header, justify="right", no_wrap=True)
    for index, prompt in enumerate(prompts):
        table.add_row(prompt.name, *_cells(Figures.of([each.only(index) for each in rounds])))
    table.add_section()
    table.add_row("all", *_cells(Figures.of(rounds)), style="bold")
    table.caption = (
        f" speed-up: median of {len(rounds)} rounds \\[quartiles]; accepted: accepted / drafted "
        "tokens; length: mean acceptance length, bonus token included"
    )
    return table


def _cells(figures: Figures) -> list[str]:
    speed_up, drafts = figures.speed_up, figures.drafts
    rate, length = drafts.acceptance_rate, drafts.mean_acceptance_length
    return [
        str(figures.num_tokens),
        f"{figures.plain_tokens_per_s:.0f}",
        f"{figures.self_tokens_per_s:.0f}",
        f"{speed_up.median:.2f} \\[{speed_up.low_quartile:.2f}, {speed_up.high_quartile:.2f}]",
        "-" if rate is None else f"{100 * rate:.0f} %",
        "-" if length is None else f"{length:.2f}",
        "yes" if figures.same_text else "[bold red]NO[/]",
    ]
