"""Functions that tests run in every worker by `LLM.collective_rpc`, which passes the worker."""

from __future__ import annotations

import functools


def record_drafts(worker) -> None:
    """Make the worker record its drafts; `drafts_of` returns them."""
    runner = worker.model_runner
    runner.recorded_drafts = []
    propose = runner.propose_draft_token_ids

    @functools.wraps(propose)
    def recording(*args, **kwargs):
        drafts = propose(*args, **kwargs)
        runner.recorded_drafts.append(drafts)
        return drafts

    runner.propose_draft_token_ids = recording


def drafts_of(worker) -> list[list[list[int]]]:
    """Every propose step's drafts, request by request."""
    return worker.model_runner.recorded_drafts


def num_resumed_tokens(worker) -> int:
    return worker.model_runner.num_resumed_tokens
