"""Which step verifies from exit states: the runner's part of that decision.

A request whose blocks changed, or whose next token did, often stands at another position and is
found out by that. Not always: further input to a session of streaming input starts at the very
position where its exit states do. So these steps are made by hand.
"""

from types import SimpleNamespace

import numpy as np
import pytest

from layerskip_vllm.runner_v1.runner import LayerSkipRunnerMixin
from layerskip_vllm.spec_decode.draft_batch import DraftBatch
from layerskip_vllm.spec_decode.draft_probs import DraftProbs


class Host:
    """Stands for vLLM's runner: it runs no step."""

    def execute_model(self, scheduler_output):
        return None


class Runner(LayerSkipRunnerMixin, Host):
    """After a step in which `a` drafted two tokens from position 16 on."""

    def __init__(self):
        batch = DraftBatch(["a"], np.array([0]), np.array([16]), np.array([7]), np.array([2]))
        self.vllm_config = SimpleNamespace(speculative_config=None)
        self._drawn_from = DraftProbs()
        self._observer = SimpleNamespace(forget=lambda: None)
        self.drafter = SimpleNamespace(exit_query_cache=SimpleNamespace(take=lambda: batch))
        self.input_batch = SimpleNamespace(req_ids=["a"], num_computed_tokens_cpu=np.array([16]))
        self.query_start_loc = SimpleNamespace(np=np.array([0, 3]))


def step(*, new=(), cached=(), resumed=()):
    return SimpleNamespace(
        total_num_scheduled_tokens=3,
        finished_req_ids=set(),
        num_spec_tokens_to_schedule=2,
        scheduled_spec_decode_tokens={},
        scheduled_new_reqs=[SimpleNamespace(req_id=req_id) for req_id in new],
        scheduled_cached_reqs=SimpleNamespace(req_ids=list(cached), resumed_req_ids=set(resumed)),
    )


def resumed_entries(scheduler_output):
    runner = Runner()
    runner.execute_model(scheduler_output)
    return runner._resumed_entries()


def test_a_request_that_goes_on_is_resumed():
    assert resumed_entries(step(cached=["a"])).tolist() == [[0, 0], [0, 1], [0, 2]]


@pytest.mark.parametrize(
    "changed",
    [step(new=["a"]), step(cached=["a"], resumed=["a"])],
    ids=["further input of a session", "resumed from preemption"],
)
def test_a_request_with_other_blocks_or_tokens_is_not(changed):
    assert resumed_entries(changed) is None
