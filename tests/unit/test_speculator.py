"""The speculator of runner V2 without a model: what it takes from vLLM's configuration and ranks.

By a dummy propose step, an idle data-parallel rank follows the others.
"""

from types import SimpleNamespace

import pytest
import torch
from vllm.config.compilation import CUDAGraphMode

from layerskip_vllm.runner_v2.speculator import LayerSkipSpeculator


@pytest.fixture
def speculator():
    """A speculator without a model: it records for how many requests it runs."""
    speculator = object.__new__(LayerSkipSpeculator)
    speculator.vllm_config = SimpleNamespace(model_config=SimpleNamespace(max_model_len=64))
    speculator.num_speculative_steps = 2
    speculator.draft_tokens = torch.zeros(8, 2)
    speculator.rows = []
    speculator.draft_logits = None
    speculator._num_reqs, speculator._num_rejected = torch.zeros(()), torch.zeros(8)
    speculator._enter_slots = lambda *_: None

    def dispatch(num_reqs, *_):
        speculator.rows.append(num_reqs)
        return SimpleNamespace(cg_mode=CUDAGraphMode.NONE, num_tokens=num_reqs), None

    speculator._dispatch = dispatch
    speculator._run_steps = lambda num_reqs, *_: speculator.rows.append(num_reqs)
    return speculator


def propose(speculator, num_reqs: int, **arguments) -> None:
    batch = SimpleNamespace(
        num_reqs=num_reqs,
        idx_mapping=None,
        seq_lens_cpu_upper_bound=torch.ones(num_reqs),
    )
    tensors = [None] * 10
    tensors[5] = torch.zeros(num_reqs)  # num_rejected
    speculator.propose(batch, *tensors, dummy_run=True, **arguments)


def test_it_follows_a_context_that_vllm_has_fitted_to_memory(speculator):
    speculator.max_model_len = 64  # as vLLM 0.32's constructor does
    speculator.vllm_config.model_config.max_model_len = 48
    assert speculator.max_model_len == 48


def test_a_dummy_step_runs_no_more_requests_than_the_ranks_have_agreed_on(speculator):
    # vLLM 0.33 agrees on the requests before padding; the dummy batch has a graph's.
    propose(speculator, 8, dp_sync_state=SimpleNamespace(num_reqs=5))
    assert speculator.rows == [5, 5]


@pytest.mark.parametrize("dp_sync_state", [None, SimpleNamespace(num_reqs=9)])
def test_a_dummy_step_runs_its_whole_batch_otherwise(speculator, dp_sync_state):
    propose(speculator, 8, dp_sync_state=dp_sync_state)
    assert speculator.rows == [8, 8]
