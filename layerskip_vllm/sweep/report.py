"""What a sweep found, on the screen and in Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from layerskip_vllm.measure.spread import Spread
from layerskip_vllm.sweep.summary import Cell, Pair, Summary

UNKNOWN = "-"
BEST_STYLE, PAYS_STYLE, LOSES_STYLE = "bold reverse green", "green", "dim"


def print_tables(console: Console, label: str, summary: Summary) -> None:
    """Print a table of E by K for each batch size and draft vocabulary."""
    console.print(f"\nSpeed-up of {escape(label)} over plain vLLM", style="bold")
    for batch_size in summary.batch_sizes:
        best = summary.best(batch_size)
        for vocab_size in summary.draft_vocab_sizes:
            title = panel_title(summary, batch_size, vocab_size).replace("\n", " ")
            console.print(f"\n{title}", highlight=False)
            table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
            table.add_column("E \\ K", justify="right")
            for k in summary.draft_lengths:
                table.add_column(str(k), justify="right", min_width=5)
            for exit_layer in summary.exit_layers:
                pairs = pairs_of_row(summary, exit_layer, vocab_size)
                cells = [_text(summary.cell(p, batch_size), p == best) for p in pairs]
                table.add_row(str(exit_layer), *cells)
            console.print(table)


def panel_title(summary: Summary, batch_size: int, vocab_size: int | None) -> str:
    """Name a table or a panel of the heat map."""
    speed = f"plain vLLM {summary.plain(batch_size).tokens_per_s.median:,.1f} tokens/s"
    if summary.draft_vocab_sizes == [None]:
        return f"batch {batch_size}, {speed}"
    # In two lines, since a panel may be narrow.
    return f"batch {batch_size}, {vocabulary(vocab_size)},\n{speed}"


def vocabulary(size: int | None) -> str:
    """Name a draft vocabulary."""
    return "whole vocabulary" if size is None else f"draft vocabulary {size:,}"


def pairs_of_row(summary: Summary, exit_layer: int, vocab_size: int | None) -> list[Pair]:
    """The pairs of one E, one per K."""
    setups = {
        (pair.setup.exit_layer, pair.setup.draft_vocab_size): pair.setup for pair in summary.pairs
    }
    setup = setups.get((exit_layer, vocab_size))
    return [] if setup is None else [Pair(setup, k) for k in summary.draft_lengths]


def conclusions(summary: Summary) -> list[str]:
    """One sentence per line: the best pair of each batch size, then of all."""
    lines = []
    for batch_size in summary.batch_sizes:
        pair = summary.best(batch_size)
        cell = None if pair is None else summary.cell(pair, batch_size)
        if pair is None or cell is None:
            continue
        lines.append(
            f"Best at batch {batch_size}: {pair.name}: {cell.speedup.median:.2f}x plain vLLM "
            f"({cell.speedup.low_quartile:.2f} to {cell.speedup.high_quartile:.2f}), "
            f"{cell.tokens_per_s.median:,.1f} tokens/s, {_percent(cell)} of drafts accepted."
        )
    best = summary.best_overall
    if best is not None:
        mean = summary.mean_speedup(best) or 0
        over = "" if len(summary.batch_sizes) == 1 else " (geometric mean over the batch sizes)"
        lines.append(f"Best overall: {best.name}: {mean:.2f}x{over}.")
        if mean <= 1:
            lines.append("No pair beats plain vLLM: serve this checkpoint without self:E.")
        else:
            lines += _beyond(summary, best)
    return lines


def _beyond(summary: Summary, best: Pair) -> list[str]:
    """Say where a faster pair may lie beyond those measured."""
    exits, lengths = summary.exit_layers, summary.draft_lengths
    directions = []
    if best.setup.exit_layer == exits[0] > 1:
        directions.append(f"--exit-layers below {exits[0]}")
    elif best.setup.exit_layer == exits[-1]:
        directions.append(f"--exit-layers above {exits[-1]}")
    if best.num_speculative_tokens == lengths[-1]:
        directions.append(f"--num-speculative-tokens above {lengths[-1]}")
    if not directions:
        return []
    return [f"It is at the edge of what was measured: try {' and '.join(directions)} too."]


def markdown(label: str, summary: Summary, subject: Mapping[str, object], command: str) -> str:
    """All figures as a Markdown page."""
    lines = [f"# Sweep of {label}", "", *(f"- {line}" for line in conclusions(summary)), ""]
    lines += ["```", command, "```", "", "![Speed-up by E and K](sweep.png)", ""]
    for batch_size in summary.batch_sizes:
        plain = summary.plain(batch_size)
        lines += [
            f"## Batch {batch_size}",
            "",
            f"Plain vLLM: {_spread(plain.tokens_per_s, 1)} tokens/s.",
            "",
            "| E | K | Draft vocabulary | Speed-up | tokens/s | Drafts accepted | "
            "Mean acceptance length | Rounds |",
            "|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        best = summary.best(batch_size)
        rows = [(pair, summary.cell(pair, batch_size)) for pair in summary.pairs]
        lines += [_row(pair, cell, pair == best) for pair, cell in rows if cell is not None]
        lines.append("")
    lines += ["Speed-up and tokens/s: median over the rounds (quartiles). Measured with:", ""]
    figures = {**subject, "device": ", ".join(sorted(summary.devices))}
    lines += [f"- {key}: `{json.dumps(value)}`" for key, value in figures.items()]
    return "\n".join(lines) + "\n"


def _row(pair: Pair, cell: Cell, is_best: bool) -> str:
    size = pair.setup.draft_vocab_size
    length = cell.drafts.mean_acceptance_length
    speedup = _spread(cell.speedup)
    columns = [
        str(pair.setup.exit_layer),
        str(pair.num_speculative_tokens),
        "all" if size is None else f"{size:,}",
        f"**{speedup}**" if is_best else speedup,
        _spread(cell.tokens_per_s, 1),
        _percent(cell),
        UNKNOWN if length is None else f"{length:.2f}",
        str(cell.num_rounds),
    ]
    return f"| {' | '.join(columns)} |"


def _text(cell: Cell | None, is_best: bool) -> Text:
    if cell is None:
        return Text(UNKNOWN, style=LOSES_STYLE)
    pays = PAYS_STYLE if cell.speedup.median > 1 else LOSES_STYLE
    return Text(f"{cell.speedup.median:.2f}", style=BEST_STYLE if is_best else pays)


def _spread(spread: Spread, digits: int = 2) -> str:
    median, low, high = (
        f"{value:,.{digits}f}"
        for value in (spread.median, spread.low_quartile, spread.high_quartile)
    )
    return f"{median} ({low} to {high})"


def _percent(cell: Cell) -> str:
    rate = cell.drafts.acceptance_rate
    return UNKNOWN if rate is None else f"{100 * rate:.0f} %"
