"""A measured round as a race: what each side had streamed at any moment of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.text import Text

from layerskip_vllm.demo.models import Prompt
from layerskip_vllm.demo.screen import LaneFrame, Screen
from layerskip_vllm.demo.streams import Chunk, Stream

FRAMES_PER_S = 25


@dataclass(frozen=True)
class Lane:
    """One server's streams of a round, one after another without pauses."""

    title: str
    prompts: Sequence[Prompt]
    streams: Sequence[Stream]

    @property
    def seconds(self) -> float:
        """When it crosses the line."""
        return sum(stream.seconds for stream in self.streams)

    def at(self, seconds: float) -> LaneFrame:
        """The frame `seconds` after the start; it stays as it is once all is streamed."""
        body, num_tokens, start = Text(), 0, 0.0
        for prompt, stream in zip(self.prompts, self.streams, strict=True):
            if seconds < start:
                break
            chunks = stream.until(seconds - start)
            body.append_text(transcript(prompt, chunks))
            num_tokens += chunks[-1].num_tokens if chunks else 0
            start += stream.seconds
        max_tokens = sum(stream.num_tokens for stream in self.streams)
        return LaneFrame(self.title, body, num_tokens, max_tokens, min(seconds, self.seconds))


def transcript(prompt: Prompt, chunks: Sequence[Chunk]) -> Text:
    """The prompt's last line, dim, and what was streamed so far; ends with a blank line."""
    completion = "".join(chunk.text for chunk in chunks)
    return Text.assemble(
        (f"{prompt.name}\n", "dim italic"),
        (prompt.text.splitlines()[-1], "dim"),
        completion,
        "\n\n",
    )


def replay(
    screen: Screen,
    race: Sequence[Lane],
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Show both lanes in real time, until the slower one has finished."""
    started, seconds = clock(), 0.0
    finish = max(lane.seconds for lane in race)
    while seconds < finish:
        seconds = clock() - started
        screen.draw([lane.at(seconds) for lane in race])
        sleep(1 / FRAMES_PER_S)


def photo_finish(race: Sequence[Lane]) -> list[LaneFrame]:
    """Both lanes at the moment when the faster one finishes."""
    seconds = min(lane.seconds for lane in race)
    return [lane.at(seconds) for lane in race]
