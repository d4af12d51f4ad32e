"""Functions that tests run in every worker by `LLM.collective_rpc`, which passes the worker."""

from __future__ import annotations

import functools


def record_drafts(worker) -> None:
    """Make the worker record its drafts; `drafts_of` returns them."""
    runner = worker.model_runner
    runner.recorded_drafts = []
    is_v2 = hasattr(runner, "speculator")
    place, name = (runner.speculator, "propose") if is_v2 else (runner, "propose_draft_token_ids")
    propose = getattr(place, name)

    @functools.wraps(propose)
    def recording(*args, **kwargs):
        drafts = propose(*args, **kwargs)
        # V2 returns a row of the engine's K tokens for each request.
        num_drafts = kwargs.get("num_speculative_tokens")
        runner.recorded_drafts.append(drafts[:, :num_drafts].tolist() if is_v2 else drafts)
        return drafts

    setattr(place, name, recording)


def drafts_of(worker) -> list[list[list[int]]]:
    """Every propose step's drafts, request by request."""
    return worker.model_runner.recorded_drafts


def num_resumed_tokens(worker) -> int:
    return worker.model_runner.num_resumed_tokens
