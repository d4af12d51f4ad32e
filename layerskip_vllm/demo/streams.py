"""Stream a completion from a server and record when each piece arrives."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from layerskip_vllm.demo.models import Prompt
from layerskip_vllm.measure.decoding import DraftCounts
from layerskip_vllm.measure.server import Server


@dataclass(frozen=True)
class Chunk:
    """One piece of a stream: seconds since the request, new text, tokens so far."""

    seconds: float
    text: str
    num_tokens: int


@dataclass(frozen=True)
class Stream:
    """A recorded completion, at least one chunk, and the drafts that it took."""

    chunks: Sequence[Chunk]
    drafts: DraftCounts = field(default_factory=DraftCounts)

    @property
    def text(self) -> str:
        """The completion."""
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def num_tokens(self) -> int:
        """Tokens of the completion."""
        return self.chunks[-1].num_tokens

    @property
    def seconds(self) -> float:
        """From the request to the last chunk."""
        return self.chunks[-1].seconds

    def until(self, seconds: float) -> Sequence[Chunk]:
        """The chunks that had arrived `seconds` after the request."""
        return list(takewhile(lambda chunk: chunk.seconds <= seconds, self.chunks))


def record(
    server: Server,
    prompt: Prompt,
    max_tokens: int,
    on_chunk: Callable[[Sequence[Chunk]], None],
) -> Stream:
    """Stream a greedy completion through the `openai` client.

    Args:
        server: Serves one model.
        prompt: Its text.
        max_tokens: Tokens of the completion, unless it ends before.
        on_chunk: Called with all chunks so far after each one.
    """
    before = _draft_counts(server)
    chunks: list[Chunk] = []
    started = time.perf_counter()
    stream = server.client.completions.create(
        model=server.model,
        prompt=prompt.text,
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    )
    for piece in stream:
        if piece.choices:  # the last one holds the usage alone
            seconds = time.perf_counter() - started
            chunks.append(Chunk(seconds, piece.choices[0].text, piece.usage.completion_tokens))
            on_chunk(chunks)
    after = _draft_counts(server)
    counted = (now - then for now, then in zip(after, before, strict=True))
    return Stream(chunks, DraftCounts(*counted))


def _draft_counts(server: Server) -> tuple[int, int, int]:
    """Drafts, drafted and accepted tokens so far, as vLLM counts them; 0 in plain decoding."""
    metrics = server.metrics()
    names = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
    drafts, drafted, accepted = (
        int(metrics.get((f"vllm:spec_decode_{name}_total",), 0)) for name in names
    )
    return drafts, drafted, accepted
