"""Arithmetic on a step's schedule: who drafts, which tokens resume. Pure numbers, no vLLM."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import pad


@dataclass(frozen=True)
class ResumePlan:
    """Split of a packed batch into resumed and fresh tokens.

    A token is *resumed* where the exit query cache holds its state, and *fresh* where not, so that
    its early layers must run. In every request the resumed tokens come first. Fresh tokens are thus
    a suffix of the request's query, and bottom-right causal alignment holds for them alone.
    """

    exit_state_indices: torch.Tensor  # [num_tokens], int64, into the flat cache; 0 where fresh
    fresh_token_indices: torch.Tensor  # [num_fresh_tokens], int64, into the packed batch
    fresh_rows: torch.Tensor  # [num_fresh_reqs], int64, requests with at least one fresh token
    fresh_query_start_loc: torch.Tensor  # [num_fresh_reqs + 1], int32

    @classmethod
    def from_schedule(
        cls,
        query_lens: np.ndarray,  # [num_reqs], scheduled tokens per request
        num_resumed: np.ndarray,  # [num_reqs], how many of them have a cached exit state
        cache_rows: np.ndarray,  # [num_reqs], row in the exit query cache; any value where none
        cache_width: int,  # exit states per cache row
    ) -> ResumePlan:
        """Lay the tokens of a step out, all requests at once."""
        query_start = np.cumsum(query_lens) - query_lens
        index_in_query = np.arange(query_lens.sum()) - np.repeat(query_start, query_lens)
        is_resumed = index_in_query < np.repeat(num_resumed, query_lens)
        exit_state_indices = np.repeat(cache_rows * cache_width, query_lens) + index_in_query

        num_fresh = query_lens - num_resumed
        fresh_rows = np.flatnonzero(num_fresh)
        fresh_query_start_loc = np.concatenate([[0], np.cumsum(num_fresh[fresh_rows])])
        return cls(
            exit_state_indices=torch.from_numpy(np.where(is_resumed, exit_state_indices, 0)),
            fresh_token_indices=torch.from_numpy(np.flatnonzero(~is_resumed)),
            fresh_rows=torch.from_numpy(fresh_rows),
            fresh_query_start_loc=torch.from_numpy(fresh_query_start_loc.astype(np.int32)),
        )

    @property
    def num_resumed_tokens(self) -> int:
        """Tokens that skip the early layers."""
        return len(self.exit_state_indices) - self.num_fresh_tokens

    @property
    def num_fresh_tokens(self) -> int:
        """Tokens that run them."""
        return len(self.fresh_token_indices)

    @property
    def rows_of_fresh_tokens(self) -> np.ndarray:
        """Which request each fresh token is of: [num_fresh_tokens], int64, on the host."""
        counts = self.fresh_query_start_loc.diff()
        return self.fresh_rows.repeat_interleave(counts).cpu().numpy()

    @property
    def max_fresh_query_len(self) -> int:
        """Most fresh tokens of one request; there must be some."""
        return int(self.fresh_query_start_loc.diff().max())

    def to(self, device: torch.device) -> ResumePlan:
        """The same plan with its tensors on `device`."""
        return ResumePlan(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class DraftSchedule:
    """Which requests draft after a step, from where, and how far.

    One entry a drafting request; requests in the middle of their prompt have none.
    """

    rows: np.ndarray  # [num_drafting], int64, into the runner's batch
    start_positions: np.ndarray  # [num_drafting], int64, n: the position of next_token_ids
    next_token_ids: np.ndarray  # [num_drafting], int64, t: sampled this step, not yet computed
    num_drafts: np.ndarray  # [num_drafting], int64, at least 1

    @classmethod
    def from_step(
        cls,
        *,
        max_drafts: np.ndarray,  # [num_reqs], of each request; 0 in the middle of its prompt
        max_model_len: int,
        sampled_token_ids: np.ndarray,  # [num_reqs, <= K + 1], accepted + 1 tokens, then -1
        num_computed: np.ndarray,  # [num_reqs], tokens computed before the step
        num_scheduled: np.ndarray,  # [num_reqs], tokens that the step computed, drafts included
        num_verified: np.ndarray,  # [num_reqs], drafts among them
    ) -> DraftSchedule:
        """Read from a step's outcome where each request stands.

        vLLM's scheduler leaves room for one more sampled token below `max_model_len`, so of the
        positions n .. max_model_len - 1 the first holds t and the last can hold no draft.
        """
        num_sampled = (sampled_token_ids >= 0).sum(axis=1)
        start_positions = num_computed + num_scheduled - num_verified + num_sampled - 1
        num_drafts = np.minimum(max_drafts, max_model_len - 2 - start_positions)
        rows = np.flatnonzero((num_sampled > 0) & (num_drafts > 0))
        return cls(
            rows=rows,
            start_positions=start_positions[rows].astype(np.int64),
            next_token_ids=sampled_token_ids[rows, num_sampled[rows] - 1].astype(np.int64),
            num_drafts=num_drafts[rows].astype(np.int64),
        )


@dataclass(frozen=True)
class DraftPlan:
    """Where each draft step of a cycle reads and writes: one row a step, all made at once.

    A request that may draft no further than others repeats its last position, with no slot to
    write to. Rows beyond the requests are idle: they fill a forward up to the least that is run.
    """

    positions: torch.Tensor  # [num_steps, num_rows], int64
    slot_mapping: torch.Tensor  # [num_steps, num_rows], int64
    seq_lens: torch.Tensor  # [num_steps, num_drafting], int32, the step's own token included
    seq_lens_cpu: torch.Tensor  # the same on the host
    max_seq_lens: list[int]  # [num_steps]

    @classmethod
    def from_schedule(
        cls,
        schedule: DraftSchedule,
        num_rows: int,  # at least num_drafting
        block_table: torch.Tensor,  # [num_drafting, max_num_blocks], int32
        block_size: int,
        padding_slot: int,
    ) -> DraftPlan:
        """Lay the steps out, on the device of `block_table`.

        All on the host, which knows everything already: a few copies instead of many small kernels.
        """
        steps = np.arange(schedule.num_drafts.max())[:, None]
        requests = np.arange(len(schedule.rows))
        own = schedule.start_positions + np.minimum(steps, schedule.num_drafts - 1)
        slots = block_table.cpu().numpy()[requests, own // block_size].astype(np.int64)
        slots = slots * block_size + own % block_size
        slots[schedule.num_drafts <= steps] = padding_slot

        def laid_out(values: np.ndarray, idle: int) -> torch.Tensor:
            rows = np.full((len(steps), num_rows), idle, np.int64)
            rows[:, requests] = values
            return torch.from_numpy(rows).to(block_table.device)

        seq_lens_cpu = torch.from_numpy((own + 1).astype(np.int32))
        return cls(
            positions=laid_out(own, 0),
            slot_mapping=laid_out(slots, padding_slot),
            seq_lens=seq_lens_cpu.to(block_table.device),
            seq_lens_cpu=seq_lens_cpu,
            max_seq_lens=(own.max(axis=1) + 1).tolist(),
        )


def with_idle_rows(rows: torch.Tensor, num_rows: int, value: int = 0) -> torch.Tensor:
    """Append rows of `value`, [n, *] -> [max(n, num_rows), *]."""
    idle = (0, 0) * (rows.dim() - 1) + (0, max(0, num_rows - len(rows)))
    return pad(rows, idle, value=value)
