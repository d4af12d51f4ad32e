"""Which cached states a scheduled token may resume from."""

import numpy as np
import pytest
import torch

from layerskip_vllm.models.split import ExitState
from layerskip_vllm.spec_decode.exit_query_cache import ExitQueryCache, ExitQueryEntries

ENTRIES = ExitQueryEntries(
    req_ids=["a", "b"],
    start_positions=np.array([10, 20]),
    token_ids=np.array([[1, 2, 3], [4, 5, 6]]),
    num_states=np.array([2, 3]),
)


@pytest.mark.parametrize(
    ("req_id", "position", "scheduled", "num_resumed"),
    [
        pytest.param("b", 20, [4, 5, 6, 7], 3, id="all drafts scheduled: the last one is fresh"),
        pytest.param("b", 20, [4, 5, -1, -1], 2, id="drafts cut by the scheduler"),
        pytest.param("b", 20, [4, -1, -1, -1], 1, id="no draft scheduled"),
        pytest.param("b", 20, [4, 9, 6, -1], 1, id="another token: nothing behind it resumes"),
        pytest.param("b", 20, [9, 5, 6, -1], 0, id="another first token"),
        pytest.param("b", 21, [4, 5, 6, 7], 0, id="another position"),
        pytest.param("c", 20, [4, 5, 6, 7], 0, id="another request"),
        pytest.param(None, 20, [4, 5, 6, 7], 0, id="a request that must not resume"),
    ],
)
def test_only_the_same_tokens_of_the_same_request_resume(req_id, position, scheduled, num_resumed):
    rows, resumed = ENTRIES.match([req_id], np.array([position]), np.array([scheduled]))
    assert resumed.tolist() == [num_resumed]
    if num_resumed:
        assert rows.tolist() == [1]


def test_a_request_resumes_no_further_than_it_drafted():
    _, resumed = ENTRIES.match(["a"], np.array([10]), np.array([[1, 2, 3]]))
    assert resumed.tolist() == [2]


def test_requests_may_come_back_in_another_order():
    rows, resumed = ENTRIES.match(
        ["b", "new", "a"], np.array([20, 0, 10]), np.array([[4, 5, 6], [1, 2, 3], [1, 2, -1]])
    )
    assert resumed.tolist() == [3, 0, 2]
    assert rows[[0, 2]].tolist() == [1, 0]


def test_nothing_resumes_from_no_entries():
    _, resumed = ExitQueryEntries().match(["a"], np.array([10]), np.array([[1, 2, 3]]))
    assert resumed.tolist() == [0]


def make_cache() -> ExitQueryCache:
    return ExitQueryCache(4, 3, hidden_size=2, dtype=torch.float32, device=torch.device("cpu"))


def test_entries_can_be_taken_once():
    cache = make_cache()
    cache.publish(ENTRIES)
    assert cache.take() is ENTRIES
    assert list(cache.take().req_ids) == []


def test_states_come_back_as_they_were_stored():
    cache = make_cache()
    states = [ExitState(torch.randn(4, 2), torch.randn(4, 2)) for _ in range(3)]
    for step, state in enumerate(states):
        cache.store(step, state)
    rows, steps = torch.tensor([3, 0, 0]), torch.tensor([1, 2, 0])
    gathered = cache.gather(rows * cache.width + steps)
    for name in ExitState._fields:
        expected = [getattr(states[s], name)[r] for r, s in zip(rows, steps, strict=True)]
        assert torch.equal(getattr(gathered, name), torch.stack(expected))


def test_a_state_that_is_overwritten_later_stays_as_stored():
    cache = make_cache()
    state = ExitState(torch.ones(1, 2), torch.ones(1, 2))
    cache.store(0, state)
    state.hidden_states.zero_()  # vLLM's fused norm works in place
    gathered = cache.gather(torch.tensor([0]))
    gathered.residual.zero_()
    assert torch.equal(cache.gather(torch.tensor([0])).hidden_states, torch.ones(1, 2))
    assert torch.equal(cache.gather(torch.tensor([0])).residual, torch.ones(1, 2))


def test_memory_is_two_states_a_token():
    assert make_cache().num_bytes == 4 * 3 * 2 * 2 * 4
