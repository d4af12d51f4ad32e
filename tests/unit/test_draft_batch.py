"""A draft batch's arithmetic against brute-force loops."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerskip_vllm.spec_decode.draft_batch import DraftBatch, DraftSteps

WIDTH = 4


def batch_of(start_positions, num_drafts) -> DraftBatch:
    rows = np.arange(len(start_positions))
    starts, most = np.array(start_positions), np.array(num_drafts)
    return DraftBatch([f"r{row}" for row in rows], rows, starts, np.zeros_like(rows), most)


@st.composite
def outcomes(draw):
    """Per request: computed and scheduled tokens, verified and accepted drafts, draft limit."""
    reqs = []
    for _ in range(draw(st.integers(1, 6))):
        computed, max_drafts = draw(st.integers(0, 60)), draw(st.integers(-1, WIDTH))
        if draw(st.booleans()):  # a prompt or a chunk of one
            reqs.append((computed, draw(st.integers(1, 20)), 0, 0, max_drafts))
        else:
            verified = draw(st.integers(0, WIDTH))
            accepted = draw(st.integers(0, verified))
            reqs.append((computed, verified + 1, verified, accepted, max_drafts))
    return reqs


@given(outcomes(), st.data())
def test_a_batch_equals_a_loop_over_the_requests(reqs, data):
    sampled = np.full((len(reqs), WIDTH + 1), -1)
    for row, (_, _, _, accepted, _) in enumerate(reqs):
        sampled[row, : accepted + 1] = 100 * row + np.arange(accepted + 1)
    computed, scheduled, verified, _, max_drafts = map(np.array, zip(*reqs, strict=True))
    max_num_tokens = np.array([data.draw(st.integers(1, 90)) for _ in reqs])

    expected = []
    for row, (c, s, v, a, most) in enumerate(reqs):
        position = c + s - (v - a)  # rejected drafts are not computed tokens
        # The last position must stay free for the token after the drafts.
        num_drafts = min(most, max_num_tokens[row] - 2 - position)
        if num_drafts >= 0:
            expected.append((row, position, 100 * row + a, num_drafts))
    expected.sort(key=lambda entry: -entry[-1])

    batch = DraftBatch.from_step(
        [f"r{row}" for row in range(len(reqs))],
        max_drafts=max_drafts,
        max_num_tokens=max_num_tokens,
        sampled_token_ids=sampled,
        num_computed=computed,
        num_scheduled=scheduled,
        num_verified=verified,
    )
    if batch is None:
        assert all(entry[-1] == 0 for entry in expected)
        return
    columns = (batch.rows, batch.start_positions, batch.next_token_ids, batch.num_drafts)
    assert [tuple(map(int, entry)) for entry in zip(*columns, strict=True)] == expected
    assert batch.req_ids == [f"r{entry[0]}" for entry in expected]


def test_a_request_that_sampled_nothing_is_left_out():
    batch = DraftBatch.from_step(
        ["prompt", "decode"],
        max_drafts=np.array([WIDTH, 2]),
        max_num_tokens=np.array([99, 99]),
        sampled_token_ids=np.array([[-1], [7]]),
        num_computed=np.array([0, 5]),
        num_scheduled=np.array([3, 1]),
        num_verified=np.array([0, 0]),
    )
    assert batch.req_ids == ["decode"]
    assert batch.next_token_ids.tolist() == [7]


def test_each_request_gets_its_own_drafts():
    batch = batch_of([5, 9, 3], [2, 1, 0])
    batch.token_ids = np.array([[11, 12], [21, 0]])
    assert batch.drafts() == [[11, 12], [21]]


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, WIDTH)), min_size=1, max_size=6),
    st.integers(0, 3),
    st.booleans(),
    st.data(),
)
def test_step_layout_equals_a_loop_over_steps_and_requests(reqs, num_idle, with_last, data):
    reqs = sorted(reqs, key=lambda req: -req[1])
    if reqs[0][1] == 0:
        return
    block_size, padding_slot = 4, -1
    table = [data.draw(st.permutations(range(14))) for _ in reqs]
    steps = DraftSteps.of_batch(
        batch_of(*map(list, zip(*reqs, strict=True))),
        torch.tensor(table, dtype=torch.int32),
        num_rows=len(reqs) + num_idle,
        block_size=block_size,
        padding_slot=padding_slot,
        with_last_draft=with_last,
    )
    assert len(steps) == reqs[0][1] + with_last
    assert steps.positions.shape == steps.slot_mapping.shape == (len(steps), len(reqs) + num_idle)
    for step in range(len(steps)):
        running = [row for row, (_, n) in enumerate(reqs) if step < n + with_last]
        assert steps.num_reqs[step] == len(running)
        assert running == list(range(len(running)))
        for row in running:
            position = reqs[row][0] + step
            slot = table[row][position // block_size] * block_size + position % block_size
            assert steps.positions[step, row] == position
            assert steps.seq_lens[step, row] == steps.seq_lens_cpu[step, row] == position + 1
            assert steps.slot_mapping[step, row] == slot
        assert steps.positions[step, len(running) :].eq(0).all()
        assert steps.slot_mapping[step, len(running) :].eq(padding_slot).all()
        assert steps.max_seq_lens[step] == steps.seq_lens[step, : len(running)].max()
    for rows in (steps.positions, steps.seq_lens, steps.slot_mapping):
        assert rows.is_contiguous()  # kernels take a row's address
    assert (steps.positions.dtype, steps.seq_lens.dtype) == (torch.int64, torch.int32)
    assert steps.slot_mapping.dtype == torch.int64


BATCH = batch_of([10, 20], [3, 1])


def entries(req_ids, num_computed, num_scheduled):
    found = BATCH.resumed_entries(req_ids, np.array(num_computed), np.array(num_scheduled))
    return None if found is None else found.tolist()


def test_t_and_every_draft_resume():
    expected = [[0, 0], [0, 1], [0, 2], [0, 3], [1, 0], [1, 1]]
    assert entries(["r0", "r1"], [10, 20], [4, 2]) == expected


def test_requests_may_return_reordered_with_fewer_drafts():
    assert entries(["r1", "r0"], [20, 10], [1, 3]) == [[1, 0], [0, 0], [0, 1], [0, 2]]


def test_an_unscheduled_request_needs_no_entries():
    assert entries(["r1"], [20], [2]) == [[1, 0], [1, 1]]


def test_one_token_without_a_state_makes_the_whole_step_fresh():
    assert entries(["r0", "new"], [10, 0], [4, 5]) is None
    assert entries(["r0", "r1"], [11, 20], [3, 2]) is None  # another position
    assert entries(["r0", "r1"], [10, 20], [4, 3]) is None  # more tokens than it drafted
