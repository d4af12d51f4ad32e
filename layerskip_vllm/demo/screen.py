"""The demo's screen: two servers side by side at a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BODY_LINES = 14
"""Lines of text in each panel."""

FRAMES_PER_S = 8
"""While servers are measured: few, because drawing takes time from them."""

ANSI_CODES = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class LogTail:
    """The end of a server's log, read whenever it is drawn."""

    log: Path

    def text(self) -> Text:
        """Its last lines, without colours."""
        with self.log.open(errors="replace") as file:
            lines = deque(file, maxlen=BODY_LINES)
        return Text(ANSI_CODES.sub("", "".join(lines)), style="dim")


@dataclass(frozen=True)
class LaneFrame:
    """One side of the screen.

    Attributes:
        title: Which server.
        body: Its text.
        num_tokens: Streamed so far.
        max_tokens: All that it will stream; 0 where it streams nothing.
        seconds: Since the first request.
    """

    title: str
    body: Text | LogTail = field(default_factory=Text)
    num_tokens: int = 0
    max_tokens: int = 0
    seconds: float = 0.0


class Screen:
    """Two lanes and a line below them; use as a context manager."""

    def __init__(self, console: Console, lanes: list[LaneFrame]) -> None:
        self.console = console
        self.lanes = lanes
        self.caption = ""
        self._live = Live(self, console=console, refresh_per_second=FRAMES_PER_S)

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.stop()

    def __rich__(self) -> Group:
        return frame(self.lanes, self.caption)

    def draw(self, lanes: list[LaneFrame]) -> None:
        """Show these lanes now."""
        self.lanes = lanes
        if self.console.is_terminal:
            self._live.refresh()

    def say(self, caption: str) -> None:
        """Replace the line below the lanes; print it where there is no animation."""
        self.caption = caption
        if not self.console.is_terminal:
            self.console.print(caption, soft_wrap=True)


def frame(lanes: list[LaneFrame], caption: str) -> Group:
    """Both lanes side by side and a line below them."""
    grid = Table.grid(expand=True)
    for _ in lanes:
        grid.add_column(ratio=1)
    grid.add_row(*map(_panel, lanes))
    return Group(grid, Text.from_markup(caption))


def _panel(lane: LaneFrame) -> Panel:
    body = lane.body.text() if isinstance(lane.body, LogTail) else lane.body.copy()
    body.rstrip()
    lines = body.split("\n")[-BODY_LINES:]
    padding = [Text()] * (BODY_LINES - len(lines))
    # The lines of a joined text neither wrap nor overflow, so the panel keeps its height.
    text = Text("\n", no_wrap=True, overflow="ellipsis").join([*lines, *padding])
    is_done = 0 < lane.max_tokens <= lane.num_tokens
    return Panel(
        Group(text, Text(), _progress(lane)),
        title=f"[bold]{lane.title}[/]",
        border_style="green" if is_done else "blue",
    )


def _progress(lane: LaneFrame) -> Table:
    """A bar, and the tokens, seconds and tokens/s beside it."""
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(ratio=1)
    grid.add_column(justify="right", no_wrap=True)
    if not lane.max_tokens:
        grid.add_row("", "")
        return grid
    speed = lane.num_tokens / lane.seconds if lane.seconds else 0.0
    counters = f"{lane.num_tokens:4} tokens {lane.seconds:5.1f} s [bold]{speed:6.1f} tok/s[/]"
    bar = ProgressBar(total=lane.max_tokens, completed=lane.num_tokens, complete_style="cyan")
    grid.add_row(bar, counters)
    return grid
