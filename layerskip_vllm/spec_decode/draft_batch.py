"""The requests that draft between two steps of the target, and what they drafted; no vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from layerskip_vllm.config import Exit

FIRST_EXIT = Exit(0)


@dataclass
class DraftBatch:
    """Requests that run the early layers after a step, one row each, on the host.

    Row r feeds t = `next_token_ids[r]` at position n = `start_positions[r]`, then its
    `num_drafts[r]` drafts. So each of these tokens has an exit state, and the next step can resume
    the whole request. Rows are sorted by `num_drafts`, descending: those that still run in an early
    step are always the first ones.
    """

    req_ids: Sequence[str]  # [num_reqs]
    rows: np.ndarray  # [num_reqs], int64, into the runner's batch
    start_positions: np.ndarray  # [num_reqs], int64, n
    next_token_ids: np.ndarray  # [num_reqs], int64, t: sampled this step, not yet computed
    num_drafts: np.ndarray  # [num_reqs], int64, descending; 0 where only t runs
    token_ids: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    """[num_drafting, max(num_drafts)], int64, once proposed; 0 beyond a row's own drafts. The rows
    that draft come first."""
    sampling_probs: torch.Tensor | None = None
    """[num_drafting, max(num_drafts), vocab_size], float32; None where all drafts are greedy."""
    drafts_at: Exit = FIRST_EXIT
    """Where the drafts leave the model, and their states stay."""

    @classmethod
    def from_step(
        cls,
        req_ids: Sequence[str],  # [num_reqs], of the step
        *,
        max_drafts: np.ndarray,  # [num_reqs], most drafts of each; -1 in the middle of its prompt
        max_num_tokens: np.ndarray,  # [num_reqs], most tokens that each may have, prompt included
        sampled_token_ids: np.ndarray,  # [num_reqs, <= K + 1], accepted + 1 tokens, then -1
        num_computed: np.ndarray,  # [num_reqs], tokens computed before the step
        num_scheduled: np.ndarray,  # [num_reqs], tokens that the step computed, drafts included
        num_verified: np.ndarray,  # [num_reqs], drafts among them
        drafts_at: Exit = FIRST_EXIT,
    ) -> DraftBatch | None:
        """Read from a step's outcome where each request stands; None where no request drafts.

        A draft at position p is worth verifying if one more token may follow it: p + 2 tokens.
        """
        num_sampled = (sampled_token_ids >= 0).sum(axis=1)
        start_positions = num_computed + num_scheduled - num_verified + num_sampled - 1
        room = max_num_tokens - 2 - start_positions  # below 0: t is the last token
        rows = np.flatnonzero((num_sampled > 0) & (max_drafts >= 0) & (room >= 0))
        num_drafts = np.minimum(max_drafts, room)[rows]
        if not num_drafts.any():
            return None
        order = np.argsort(-num_drafts, kind="stable")
        rows = rows[order]
        return cls(
            req_ids=[req_ids[row] for row in rows],
            rows=rows,
            start_positions=start_positions[rows].astype(np.int64),
            next_token_ids=sampled_token_ids[rows, num_sampled[rows] - 1].astype(np.int64),
            num_drafts=num_drafts[order].astype(np.int64),
            drafts_at=drafts_at,
        )

    def drafts(self) -> list[list[int]]:
        """Token ids to verify, [num_drafting] lists."""
        rows = zip(self.token_ids.tolist(), self.num_drafts, strict=False)
        return [token_ids[:num_drafts] for token_ids, num_drafts in rows]

    def resumed_entries(
        self,
        req_ids: Sequence[str],  # [num_reqs], of the step after
        num_computed: np.ndarray,  # [num_reqs], position of each one's first scheduled token
        num_scheduled: np.ndarray,  # [num_reqs], tokens that the step computes
    ) -> np.ndarray | None:
        """Which entry [row, k] of the exit query cache holds each scheduled token's state.

        Returns:
            [sum(num_scheduled), 2], int64, or None where a token has no state. The tokens are the
            ones drafted, without a look: vLLM schedules t and then a prefix of the drafts.
        """
        row_of = {req_id: row for row, req_id in enumerate(self.req_ids)}
        rows = np.array([row_of.get(req_id, -1) for req_id in req_ids], np.int64)
        if (rows < 0).any():
            return None
        is_same_place = self.start_positions[rows] == num_computed
        if not (is_same_place & (num_scheduled <= self.num_drafts[rows] + 1)).all():
            return None
        return entries_of(rows, num_scheduled)


def entries_of(
    rows: np.ndarray,  # [num_reqs], int64, of the exit query cache
    num_scheduled: np.ndarray,  # [num_reqs], tokens that the step computes
) -> np.ndarray:
    """Entry [row, k] of each scheduled token: [sum(num_scheduled), 2], int64."""
    query_starts = np.cumsum(num_scheduled) - num_scheduled
    steps = np.arange(num_scheduled.sum()) - np.repeat(query_starts, num_scheduled)
    return np.column_stack([np.repeat(rows, num_scheduled), steps])


@dataclass(frozen=True)
class DraftSteps:
    """Where each early step of a draft batch reads and writes: one row a step, on the device.

    Step k runs the first `num_reqs[k]` requests. The rows after them are idle: they fill a forward
    up to the least number of rows, at position 0 and without a slot to write to.
    """

    num_reqs: list[int]  # [num_steps], descending
    positions: torch.Tensor  # [num_steps, num_rows], int64
    slot_mapping: torch.Tensor  # [num_steps, num_rows], int64
    seq_lens: torch.Tensor  # [num_steps, max_num_reqs], int32, the step's own token included
    seq_lens_cpu: torch.Tensor  # the same on the host
    max_seq_lens: list[int]  # [num_steps]

    @classmethod
    def of_batch(
        cls,
        batch: DraftBatch,
        block_table: torch.Tensor,  # [num_reqs, max_num_blocks], int32
        *,
        num_rows: int,  # at least num_reqs
        block_size: int,
        padding_slot: int,
        with_last_draft: bool,  # run the early layers on each request's last draft too
    ) -> DraftSteps:
        """Lay the steps out, on the device of `block_table`.

        All on the host, which knows everything already: a few copies instead of many small kernels.
        """
        num_own_steps = batch.num_drafts + with_last_draft
        steps = np.arange(num_own_steps[0])[:, None]
        requests = np.arange(len(batch.rows))
        runs = steps < num_own_steps
        own = np.where(runs, batch.start_positions + steps, 0)
        slots = block_table.cpu().numpy()[requests, own // block_size].astype(np.int64)
        slots = np.where(runs, slots * block_size + own % block_size, padding_slot)

        def laid_out(values: np.ndarray, idle: int) -> torch.Tensor:
            rows = np.full((len(steps), num_rows), idle, np.int64)
            rows[:, requests] = values
            return torch.from_numpy(rows).to(block_table.device)

        seq_lens_cpu = torch.from_numpy((own + 1).astype(np.int32))
        return cls(
            num_reqs=runs.sum(axis=1).tolist(),
            positions=laid_out(own, 0),
            slot_mapping=laid_out(slots, padding_slot),
            seq_lens=seq_lens_cpu.to(block_table.device),
            seq_lens_cpu=seq_lens_cpu,
            max_seq_lens=(own.max(axis=1) + 1).tolist(),
        )

    def __len__(self) -> int:
        return len(self.num_reqs)
