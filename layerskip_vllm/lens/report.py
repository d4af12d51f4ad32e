"""Prints the figures of a lens run as tables and sentences."""

from __future__ import annotations

from typing import Literal

from rich import box
from rich.columns import Columns
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from layerskip_vllm.lens.record import LensRecord, PairRecord
from layerskip_vllm.lens.text import evenly_spaced

MAX_LAYER_ROWS = 12
"""Most exits in the tables of tokens and of pairs."""
MIN_CELL_WIDTH = 7
MAX_CELL_WIDTH = 14
LABEL_WIDTH, EDGES_WIDTH = 4, 2
"""Widths of the column of exits and of both table edges together."""
AGREES = "✓"
UNKNOWN = "-"
AGREES_STYLE, DIFFERS_STYLE = "bold green", "dim"
BEST_STYLE, PAYS_STYLE = "bold reverse green", "green"
PERPLEXITY_DIGITS_END = 1e5
"""Larger perplexities are printed as powers of ten."""


def print_report(console: Console, record: LensRecord) -> None:
    """Print all tables, then the conclusions; the console width limits the tokens shown."""
    console.print(_window_table(record, console.width), "", _exits_table(record), "")
    tables = [
        _pairs_table(record, "mean_acceptance_length", "Mean acceptance length"),
        _pairs_table(record, "ideal_speedup", "Ideal speed-up"),
    ]
    console.print(Columns(tables, padding=(1, 2)), "")
    for line in conclusions(record):
        console.print(line, highlight=False)


def conclusions(record: LensRecord) -> list[str]:
    """Return the conclusions, one per line."""
    settled = [
        f"{mean:.1f} of {record.num_layers} {where}"
        for mean, where in (
            (record.mean_settle_layer_text, "on the prompts"),
            (record.mean_settle_layer_continuation, "on the continuations"),
        )
        if mean is not None
    ]
    lines = [f"Mean exit from which the prediction no longer changes: {', '.join(settled)}."]
    if record.best is None:
        return [*lines, "No continuation is long enough for a draft."]
    speedup = record.best.ideal_speedup or 0
    lines.append(f"Best by layers alone: {_describe(record.best)}, ideal speed-up {speedup:.2f}.")
    if record.best_timed is not None:
        speedup = record.best_timed.timed_speedup or 0
        lines.append(
            f"Best by measured speeds, LM head included: {_describe(record.best_timed)}, "
            f"speed-up {speedup:.2f}."
        )
    if speedup <= 1:
        lines.append("No pair is faster than plain decoding: drafting does not pay on this model.")
        return lines
    chosen = record.best_timed or record.best
    lines.append(
        f"Serve it with --speculative-model self:{chosen.exit_layer} --num-speculative-tokens "
        f"{chosen.num_speculative_tokens}, or with self:auto, which measures while it serves."
    )
    return lines


def _describe(pair: PairRecord) -> str:
    return (
        f"self:{pair.exit_layer} with K={pair.num_speculative_tokens} "
        f"(mean acceptance length {pair.mean_acceptance_length:.2f}, "
        f"acceptance rate {100 * (pair.acceptance_rate or 0):.0f} %)"
    )


def _window_table(record: LensRecord, width: int) -> Table:
    """Build tokens x layers, last layer on top, with as many of the last tokens as fit."""
    window = record.window
    room = width - LABEL_WIDTH - EDGES_WIDTH
    num_tokens = min(len(window.tokens), max(room // (MIN_CELL_WIDTH + 1), 1))
    cell_width = min(room // num_tokens - 1, MAX_CELL_WIDTH)
    table = Table(
        title=f"Prediction of each exit after the last tokens ({AGREES}: same as the last layer)",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    table.add_column("exit", justify="right", width=LABEL_WIDTH)
    for token in window.tokens[-num_tokens:]:
        table.add_column(_clip(" " + token, cell_width), width=cell_width, no_wrap=True)
    for exit_layer in reversed(evenly_spaced(1, record.num_layers, MAX_LAYER_ROWS)):
        row = zip(window.top1[exit_layer - 1], window.agrees[exit_layer - 1], strict=True)
        cells = [_cell(word, agrees, cell_width) for word, agrees in row]
        table.add_row(str(exit_layer), *cells[-num_tokens:])
    return table


def _cell(word: str, agrees: bool, width: int) -> Text:
    text = _clip((AGREES if agrees else " ") + word, width)
    text.stylize(AGREES_STYLE if agrees else DIFFERS_STYLE)
    return text


def _clip(word: str, width: int) -> Text:
    text = Text(word)
    text.truncate(width, overflow="ellipsis")
    return text


def _exits_table(record: LensRecord) -> Table:
    table = Table(
        title=escape(f"Exits of {record.label}, {record.dtype}, {record.num_prompts} prompt(s)"),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption=(
            "agreement: same top-1 as the last layer, over the prompts; drafting: the same where "
            "vLLM would draft. perplexity: of the prompts. "
            f"size: in {record.checkpoint_dtype}. tokens/s: measured, batch 1, {record.device}, "
            f"{record.num_threads} thread(s)."
        ),
        caption_justify="left",
    )
    for name in ("exit", "agreement", "drafting", "perplexity", "parameters", "size", "tokens/s"):
        table.add_column(name, justify="right")
    for entry in record.exits:
        table.add_row(
            str(entry.exit_layer),
            _percent(entry.agreement_text),
            _percent(entry.agreement_continuation),
            _perplexity(entry.perplexity),
            f"{entry.num_parameters / 1e6:,.1f} M",
            f"{entry.num_bytes / 2**20:,.1f} MiB",
            UNKNOWN if entry.tokens_per_s is None else f"{entry.tokens_per_s:,.1f}",
        )
    return table


def _pairs_table(
    record: LensRecord,
    value: Literal["mean_acceptance_length", "ideal_speedup"],
    title: str,
) -> Table:
    """Build a table of E by K that highlights the best pair."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0)
    table.add_column("E \\ K", justify="right", no_wrap=True)
    for num_speculative_tokens in record.draft_lengths:
        table.add_column(str(num_speculative_tokens), justify="right", no_wrap=True)
    for exit_layer in _shown_exit_layers(record):
        pairs = [record.pair(exit_layer, k) for k in record.draft_lengths]
        cells = [
            Text(_number(getattr(pair, value)), style=_pair_style(record, pair)) for pair in pairs
        ]
        table.add_row(str(exit_layer), *cells)
    return table


def _pair_style(record: LensRecord, pair: PairRecord) -> str:
    if pair == record.best:
        return BEST_STYLE
    return PAYS_STYLE if (pair.ideal_speedup or 0) > 1 else DIFFERS_STYLE


def _shown_exit_layers(record: LensRecord) -> list[int]:
    """Choose evenly spaced exits, and the best pair's."""
    every = record.exit_layers
    some = {every[i] for i in evenly_spaced(0, len(every) - 1, MAX_LAYER_ROWS)}
    return sorted(some | ({record.best.exit_layer} if record.best else set()))


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2f}"


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100 * share:.1f} %"


def _perplexity(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:,.1f}" if value < PERPLEXITY_DIGITS_END else f"{value:.1e}"
