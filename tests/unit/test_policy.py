"""What a policy hears and asks for; how far to draft is decided elsewhere."""

from types import SimpleNamespace

import numpy as np
import pytest

from layerskip_vllm.config import LayerSkipConfig
from layerskip_vllm.scheduling import policy as policy_module
from layerskip_vllm.scheduling.policy import DraftPolicy
from layerskip_vllm.spec_decode.drafts import Drafts
from tests.options import FIXED


@pytest.fixture
def seconds(monkeypatch):
    """A clock that is a list; `seconds.append(t)` sets it, and an empty one cannot be read."""
    seconds = []
    clock = SimpleNamespace(perf_counter=lambda: seconds[-1])
    monkeypatch.setattr(policy_module, "time", clock)
    return seconds


def step(policy, num_rows=1):
    """One request's token is sampled, of a forward of so many rows."""
    policy.verified(["a"], np.array([3]), np.array([[7]]), num_rows)


def drafts(num_drafts):
    return Drafts(
        req_ids=["a"],
        start_positions=np.array([3]),
        token_ids=np.full((1, num_drafts), 5),
        num_drafted=np.array([num_drafts]),
    )


def test_a_fixed_draft_length_reads_no_clock(seconds):
    policy = DraftPolicy(LayerSkipConfig(exit_layer=2, num_layers=6, **FIXED))
    step(policy)
    assert policy.num_drafts(np.array([4])) == 4
    policy.proposed(drafts(4))
    step(policy)
    assert not policy.controller.verify_seconds


def test_a_step_is_timed_from_the_end_of_the_one_before(seconds):
    policy = DraftPolicy(LayerSkipConfig(exit_layer=2, num_layers=6))
    seconds.append(10.0)
    step(policy)
    seconds.append(10.5)
    step(policy, num_rows=2)
    assert policy.controller.verify_seconds.estimate(2) == 0.5
    seconds.append(10.9)
    policy.proposed(drafts(4))
    assert policy.controller.draft_seconds.estimate(1) == pytest.approx(0.1)
