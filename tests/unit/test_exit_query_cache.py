"""States come back as stored, and only once."""

import numpy as np
import torch

from layerskip_vllm.models.segments import ExitState
from layerskip_vllm.spec_decode.draft_batch import DraftBatch
from layerskip_vllm.spec_decode.exit_query_cache import ExitQueryCache

NO_ROWS = np.zeros(0, np.int64)


def make_cache() -> ExitQueryCache:
    return ExitQueryCache(4, 2, hidden_size=2, dtype=torch.float32, device=torch.device("cpu"))


def test_a_batch_can_be_taken_once():
    cache, batch = make_cache(), DraftBatch([], NO_ROWS, NO_ROWS, NO_ROWS, NO_ROWS)
    cache.publish(batch)
    assert cache.take() is batch
    assert cache.take() is None


def test_states_come_back_as_they_were_stored():
    cache = make_cache()
    states = [ExitState(torch.randn(4, 2), torch.randn(4, 2)) for _ in range(3)]
    for step, state in enumerate(states):
        cache.store(step, state)
    entries = np.array([[3, 1], [0, 2], [0, 0]])
    gathered = cache.gather(entries)
    for name in ExitState._fields:
        expected = [getattr(states[step], name)[row] for row, step in entries]
        assert torch.equal(getattr(gathered, name), torch.stack(expected))


def test_a_state_that_is_overwritten_later_stays_as_stored():
    cache = make_cache()
    state = ExitState(torch.ones(1, 2), torch.ones(1, 2))
    cache.store(0, state)
    state.hidden_states.zero_()  # vLLM's fused norm works in place
    gathered = cache.gather(np.array([[0, 0]]))
    gathered.residual.zero_()
    assert torch.equal(cache.gather(np.array([[0, 0]])).hidden_states, torch.ones(1, 2))
    assert torch.equal(cache.gather(np.array([[0, 0]])).residual, torch.ones(1, 2))


def test_memory_is_two_states_for_each_of_k_plus_1_tokens():
    assert make_cache().num_bytes == 4 * 3 * 2 * 2 * 4
