"""Probabilities of drafts follow their requests through steps that leave some out."""

import numpy as np
import pytest
import torch

from layerskip_vllm.spec_decode.draft_batch import DraftBatch
from layerskip_vllm.spec_decode.draft_probs import DraftProbs

VOCAB_SIZE = 4


def drawn(**num_drafts: int) -> DraftBatch:
    """A batch of requests that drew so many drafts, in descending order."""
    rows, counts = np.arange(len(num_drafts)), np.array(list(num_drafts.values()))
    num_drafting = int((counts > 0).sum())
    return DraftBatch(
        list(num_drafts),
        rows,
        rows,
        rows,
        counts,
        sampling_probs=torch.rand(num_drafting, int(counts.max()), VOCAB_SIZE),
    )


@pytest.fixture
def kept():
    return DraftProbs()


def test_a_step_gets_those_of_its_drafts_in_its_order(kept):
    batch = drawn(a=3, b=2, c=0)
    kept.keep(batch)
    probs = kept.take(["b", "c", "a"], [[1], [], [2, 0, 3]])
    assert torch.equal(probs, torch.cat([batch.sampling_probs[1, :1], batch.sampling_probs[0]]))


def test_a_request_that_steps_leave_out_keeps_its_own(kept):
    first, second = drawn(a=2, b=2), drawn(a=2)
    kept.keep(first)
    kept.take(["a"], [[1, 2]])
    kept.keep(second)
    probs = kept.take(["a", "b"], [[3, 3], [0, 1]])
    expected = [second.sampling_probs[0], first.sampling_probs[1]]
    assert torch.equal(probs, torch.cat(expected))


def test_greedy_drafts_beside_drawn_ones_have_probability_one(kept):
    batch = drawn(a=1)
    kept.keep(batch)
    probs = kept.take(["greedy", "a"], [[3, 1], [2]])
    expected = torch.tensor([[0.0, 0, 0, 1], [0, 1, 0, 0]])
    assert torch.equal(probs, torch.cat([expected, batch.sampling_probs[0]]))


@pytest.mark.parametrize("drop", ["verified", "unscheduled", "ended"])
def test_nothing_is_left_of_drafts_that_no_step_verifies_any_more(kept, drop):
    kept.keep(drawn(a=1))
    if drop == "ended":
        kept.forget({"a", "other"})
    else:
        kept.take(["a"], [[1]] if drop == "verified" else [[]])
    assert kept.take(["a"], [[1]]) is None


def test_a_request_that_is_left_out_holds_no_memory_of_others(kept):
    kept.keep(drawn(a=2, b=1))
    kept.take(["a"], [[1, 2]])
    (probs,) = kept._by_request.values()
    assert probs.untyped_storage().nbytes() == VOCAB_SIZE * probs.element_size()
