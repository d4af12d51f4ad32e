"""What an engine did with one batch of requests, step by step, and the figures that follow."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class DraftCounts:
    """Speculative decoding's counters over some steps, as vLLM counts them."""

    num_drafts: int = 0  # cycles of one request that verified at least one draft
    num_drafted: int = 0  # tokens
    num_accepted: int = 0  # tokens
    num_cut_short: int = 0  # drafts of which not every token was accepted

    def __add__(self, other: DraftCounts) -> DraftCounts:
        return DraftCounts(
            *(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True))
        )

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted / drafted; None where nothing was drafted."""
        return self.num_accepted / self.num_drafted if self.num_drafted else None

    @property
    def mean_acceptance_length(self) -> float | None:
        """1 + accepted / drafts, bonus included; None where nothing was drafted."""
        return 1 + self.num_accepted / self.num_drafts if self.num_drafts else None

    @property
    def acceptance_per_token(self) -> float | None:
        """Accepted / (accepted + first rejections): the chance of a draft that has its turn.

        Tokens behind a rejection never have one, so unlike the acceptance rate this does not
        depend on K.
        """
        tried = self.num_accepted + self.num_cut_short
        return self.num_accepted / tried if tried else None


@dataclass(frozen=True)
class Decoding:
    """One batch of requests that were added together, from the first step to the last.

    Attributes:
        step_s: Wall-clock seconds of each step, everything between two outputs included.
        num_new_tokens: `[num_steps][batch_size]`, tokens that each request got in each step.
        token_ids: Output of each request.
        time_to_first_token_s: Of each request, from its arrival.
        time_per_output_token_s: Of each request: first to last token, over the tokens between.
        drafts: Counted over all steps.
    """

    step_s: list[float]
    num_new_tokens: list[list[int]]
    token_ids: list[list[int]]
    time_to_first_token_s: list[float]
    time_per_output_token_s: list[float]
    drafts: DraftCounts = field(default_factory=DraftCounts)

    @property
    def batch_size(self) -> int:
        """Concurrent requests."""
        return len(self.token_ids)

    def full_steps(self) -> range:
        """Steps in which every request decodes and none prefills, ends or has ended.

        The step that ends a request is left out because `max_tokens` cuts its tokens off.

        Raises:
            ValueError: There is no such step.
        """
        num_tokens = [0] * self.batch_size
        first, last = None, len(self.step_s)
        for index, new_tokens in enumerate(self.num_new_tokens):
            num_tokens = [a + b for a, b in zip(num_tokens, new_tokens, strict=True)]
            if first is None and all(num_tokens):
                first = index + 1
            if any(n == len(ids) for n, ids in zip(num_tokens, self.token_ids, strict=True)):
                last = index
                break
        if first is None or first >= last:
            raise ValueError(
                f"{len(self.step_s)} steps hold none in which all {self.batch_size} requests "
                "decode and none ends: let them decode more tokens"
            )
        return range(first, last)

    @property
    def num_decoded(self) -> int:
        """Tokens of the full steps, all requests together."""
        return sum(sum(self.num_new_tokens[step]) for step in self.full_steps())

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second at full concurrency, prefill apart."""
        return self.num_decoded / sum(self.step_s[step] for step in self.full_steps())

    @property
    def tokens_per_step(self) -> float:
        """Tokens that a request gets in a full step; 1 in plain decoding."""
        return self.num_decoded / (len(self.full_steps()) * self.batch_size)


class Recording:
    """Notes the steps of a batch as they happen, from its creation on."""

    def __init__(self, batch_size: int) -> None:
        self.step_s: list[float] = []
        self.num_new_tokens: list[list[int]] = []
        self.token_ids: list[list[int]] = [[] for _ in range(batch_size)]
        self._last = time.perf_counter()

    def add_step(self, new_token_ids: Mapping[int, Sequence[int]]) -> None:
        """A step has just ended.

        Args:
            new_token_ids: Row of the request in the batch -> its new tokens.
        """
        now = time.perf_counter()
        self.step_s.append(now - self._last)
        self._last = now
        self.num_new_tokens.append(
            [len(new_token_ids.get(row, ())) for row in range(len(self.token_ids))]
        )
        for row, new in new_token_ids.items():
            self.token_ids[row].extend(new)
