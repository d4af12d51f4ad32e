"""The rows of logits of a step, each of which vLLM's plain sampler takes for a request.

A request with m drafts has m + 1 rows: one after its last token, and one after each draft. Plain
decoding would sample row k as it samples a request that has emitted the first k drafts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

if TYPE_CHECKING:
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder

T = TypeVar("T")


class RewindableGenerators(dict[int, torch.Generator]):
    """Generators by row, of which a request's rows share one; a draw can be taken back.

    vLLM's samplers iterate over `items()` once and draw for a row before they go on to the next.
    """

    def __init__(self) -> None:
        super().__init__()
        self._state_before: dict[int, torch.Tensor] = {}

    def items(self) -> Iterator[tuple[int, torch.Generator]]:  # type: ignore[override]
        """Yield rows in order, and keep each generator's state before the row's draw.

        A state is a few bytes on CUDA, where it is an offset, and 5 KB on a CPU. It is on the host.
        """
        for row, generator in super().items():
            self._state_before[row] = generator.get_state()
            yield row, generator

    def take_back(self, row: int) -> None:
        """Undo the draws for a row and for those after it; a greedy batch has drawn none."""
        if row in self._state_before:
            self[row].set_state(self._state_before[row])


@dataclasses.dataclass(frozen=True)
class SampledRows:
    """Which rows of logits are whose."""

    drafts: Sequence[list[int]]
    """[num_reqs]: the drafts that the step verifies."""
    num_rows: np.ndarray
    """[num_reqs], int64: drafts + 1."""
    starts: np.ndarray
    """[num_reqs], int64: each request's first row."""
    req_indices: np.ndarray
    """[num_rows in all], int64: the request of each row."""

    @classmethod
    def of_drafts(cls, drafts: Sequence[list[int]]) -> SampledRows:
        """Lay out the rows of a batch."""
        num_rows = np.array([len(draft) + 1 for draft in drafts], np.int64)
        req_indices = np.repeat(np.arange(len(drafts)), num_rows)
        return cls(drafts, num_rows, np.cumsum(num_rows) - num_rows, req_indices)

    @property
    def have_drafts(self) -> bool:
        """Whether any request verifies a draft."""
        return len(self.req_indices) > len(self.num_rows)

    @property
    def in_request(self) -> np.ndarray:
        """[num_rows in all], int64: each row's number among its request's."""
        return np.arange(len(self.req_indices)) - self.starts[self.req_indices]

    def of_request(self, req_index: int) -> range:
        """A request's rows."""
        start = int(self.starts[req_index])
        return range(start, start + int(self.num_rows[req_index]))

    def by_request(self) -> np.ndarray:
        """[num_reqs, most rows], int64: each request's rows; its last one fills up the others."""
        columns = np.arange(self.num_rows.max())
        return self.starts[:, None] + np.minimum(columns, self.num_rows[:, None] - 1)

    def spread(self, of_request: dict[int, T]) -> dict[int, T]:
        """Give each row what its request has."""
        return {
            row: value
            for req_index, value in of_request.items()
            for row in self.of_request(req_index)
        }

    def outputs(self, output_token_ids: Sequence[list[int]]) -> list[list[int]]:
        """Each row's output so far: the request's, and the drafts before the row."""
        return [
            output + draft[:k]
            for output, draft in zip(output_token_ids, self.drafts, strict=True)
            for k in range(len(draft) + 1)
        ]

    def generators(
        self, of_request: dict[int, torch.Generator], is_discarded: np.ndarray
    ) -> RewindableGenerators:
        """Give each row its request's generator, where the sampled token is kept.

        Args:
            of_request: By request; those without a seed have none.
            is_discarded: [num_reqs], bool: requests in the middle of their prompts. vLLM draws for
                these too, and takes it back by the generator's offset, which CPU generators lack.
        """
        generators = RewindableGenerators()
        for req_index, generator in of_request.items():
            if not is_discarded[req_index]:
                generators.update(dict.fromkeys(self.of_request(req_index), generator))
        return generators

    def metadata(self, of_requests: SamplingMetadata) -> SamplingMetadata:
        """What the plain sampler must know of a batch whose requests are the rows."""
        if not self.have_drafts:
            return of_requests

        def spread(values: torch.Tensor | None) -> torch.Tensor | None:
            return None if values is None else values[rows.to(values.device)]

        rows = torch.from_numpy(self.req_indices)
        given = of_requests
        penalties = ("frequency_penalties", "presence_penalties", "repetition_penalties")
        return dataclasses.replace(
            given,
            temperature=spread(given.temperature),
            top_p=spread(given.top_p),
            top_k=spread(given.top_k),
            prompt_token_ids=spread(given.prompt_token_ids),
            **({} if given.no_penalties else {n: spread(getattr(given, n)) for n in penalties}),
            output_token_ids=given.output_token_ids and self.outputs(given.output_token_ids),
            allowed_token_ids_mask=spread(given.allowed_token_ids_mask),
            bad_words_token_ids=self.spread(given.bad_words_token_ids),
            logprob_token_ids=given.logprob_token_ids and self.spread(given.logprob_token_ids),
            spec_token_ids=None,
            thinking_budget_state_holder=self._thoughts(given),
        )

    def _thoughts(self, of_requests: SamplingMetadata) -> ThoughtsOfRows | None:
        holder = of_requests.thinking_budget_state_holder
        if holder is None or not holder.has_tracked_requests():
            return None
        return ThoughtsOfRows(holder, of_requests, self)


class ThoughtsOfRows:
    """vLLM's thinking budgets, in the place of its own holder.

    The holder follows requests from step to step. It knows two kinds of rows: those before a draft,
    and those after a request's last one, which come first.
    """

    def __init__(
        self, holder: ThinkingBudgetStateHolder, of_requests: SamplingMetadata, rows: SampledRows
    ) -> None:
        self.holder, self.of_requests = holder, of_requests
        last = rows.starts + rows.num_rows - 1
        self.parts = ((True, last), (False, np.delete(np.arange(len(rows.req_indices)), last)))

    def has_tracked_requests(self) -> bool:
        """Whether any request of the batch has a budget."""
        return True

    def update_state(self, *_args: object, **_kwargs: object) -> None:
        """Show the holder each request's output and drafts, not each row's."""
        self.holder.update_state(self.of_requests.output_token_ids, self.of_requests.spec_token_ids)

    def apply_to_logits(
        self,
        logits: torch.Tensor,  # [num_rows, vocab_size], float32; changed in place
        *_args: object,
    ) -> torch.Tensor:
        """Force the tokens that end a thought."""
        for is_last, part in self.parts:
            rows = torch.from_numpy(part).to(logits.device)
            logits[rows] = self.holder.apply_to_logits(
                logits[rows], is_last, self.of_requests.spec_token_ids
            )
        return logits
