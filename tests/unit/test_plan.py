"""The plan's arithmetic against brute-force loops."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerskip_vllm.spec_decode.plan import DraftPlan, DraftSchedule, ResumePlan

WIDTH = 4


@st.composite
def schedules(draw):
    """Per request: scheduled tokens, how many resume, and its row in the exit query cache."""
    num_reqs = draw(st.integers(1, 8))
    query_lens = draw(st.lists(st.integers(1, 9), min_size=num_reqs, max_size=num_reqs))
    num_resumed = [draw(st.integers(0, min(q, WIDTH))) for q in query_lens]
    cache_rows = draw(st.permutations(range(num_reqs)))
    return np.array(query_lens), np.array(num_resumed), np.array(cache_rows)


@given(schedules())
def test_resume_plan_equals_a_loop_over_the_tokens(schedule):
    query_lens, num_resumed, cache_rows = schedule
    exit_states, fresh, rows, start_loc = [], [], [], [0]
    token = 0
    for req, query_len in enumerate(query_lens):
        for i in range(query_len):
            if i < num_resumed[req]:
                exit_states.append(cache_rows[req] * WIDTH + i)
            else:
                exit_states.append(0)
                fresh.append(token)
            token += 1
        if query_len > num_resumed[req]:
            rows.append(req)
            start_loc.append(len(fresh))

    plan = ResumePlan.from_schedule(query_lens, num_resumed, cache_rows, WIDTH)
    assert plan.exit_state_indices.tolist() == exit_states
    assert plan.fresh_token_indices.tolist() == fresh
    assert plan.fresh_rows.tolist() == rows
    assert plan.fresh_query_start_loc.tolist() == start_loc
    assert plan.fresh_query_start_loc.dtype == torch.int32
    assert plan.num_resumed_tokens == num_resumed.sum()
    requests = np.repeat(np.arange(len(query_lens)), query_lens)
    assert plan.rows_of_fresh_tokens.tolist() == requests[fresh].tolist()


@st.composite
def outcomes(draw):
    """Per request: computed tokens, verified drafts, accepted drafts, and how many may follow."""
    reqs = []
    for _ in range(draw(st.integers(1, 6))):
        computed, max_drafts = draw(st.integers(0, 60)), draw(st.integers(0, WIDTH))
        if draw(st.booleans()):  # a prompt, or a part of one
            reqs.append((computed, draw(st.integers(1, 20)), 0, 0, max_drafts))
        else:
            verified = draw(st.integers(0, WIDTH))
            accepted = draw(st.integers(0, verified))
            reqs.append((computed, verified + 1, verified, accepted, max_drafts))
    return reqs


@given(outcomes(), st.integers(30, 90))
def test_draft_schedule_equals_a_loop_over_the_requests(reqs, max_model_len):
    sampled = np.full((len(reqs), WIDTH + 1), -1)
    for row, (_, _, _, accepted, _) in enumerate(reqs):
        sampled[row, : accepted + 1] = 100 * row + np.arange(accepted + 1)
    computed, scheduled, verified, _, max_drafts = map(np.array, zip(*reqs, strict=True))

    expected = []
    for row, (c, s, v, a, most) in enumerate(reqs):
        position = c + s - (v - a)  # rejected drafts are not computed tokens
        last = max_model_len - 2  # the last position that a scheduled token may have
        num_drafts = min(most, last - position)
        if num_drafts > 0:
            expected.append((row, position, 100 * row + a, num_drafts))

    schedule = DraftSchedule.from_step(
        max_drafts=max_drafts,
        max_model_len=max_model_len,
        sampled_token_ids=sampled,
        num_computed=computed,
        num_scheduled=scheduled,
        num_verified=verified,
    )
    actual = zip(
        schedule.rows,
        schedule.start_positions,
        schedule.next_token_ids,
        schedule.num_drafts,
        strict=True,
    )
    assert [tuple(map(int, entry)) for entry in actual] == expected


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, WIDTH)), min_size=1, max_size=6),
    st.integers(0, 3),
    st.data(),
)
def test_draft_plan_equals_a_loop_over_steps_and_requests(reqs, num_idle_rows, data):
    block_size, padding_slot, num_steps = 4, -1, max(num for _, num in reqs)
    table = [data.draw(st.permutations(range(14))) for _ in reqs]
    schedule = DraftSchedule(
        rows=np.arange(len(reqs)),
        start_positions=np.array([start for start, _ in reqs]),
        next_token_ids=np.zeros(len(reqs), np.int64),
        num_drafts=np.array([num for _, num in reqs]),
    )
    block_table = torch.tensor(table, dtype=torch.int32)
    num_rows = len(reqs) + num_idle_rows
    plan = DraftPlan.from_schedule(schedule, num_rows, block_table, block_size, padding_slot)
    assert plan.positions.shape == plan.slot_mapping.shape == (num_steps, num_rows)
    assert plan.positions[:, len(reqs) :].eq(0).all()
    assert plan.slot_mapping[:, len(reqs) :].eq(padding_slot).all()
    assert plan.max_seq_lens == plan.seq_lens.amax(dim=1).tolist()
    for step in range(num_steps):
        for row, (start, num_drafts) in enumerate(reqs):
            position = start + min(step, num_drafts - 1)
            slot = table[row][position // block_size] * block_size + position % block_size
            assert plan.positions[step, row] == position
            assert plan.seq_lens[step, row] == plan.seq_lens_cpu[step, row] == position + 1
            assert plan.slot_mapping[step, row] == (slot if step < num_drafts else padding_slot)
    for rows in (plan.positions, plan.seq_lens, plan.slot_mapping):
        assert rows.is_contiguous()  # kernels take a row's address
    assert (plan.positions.dtype, plan.seq_lens.dtype) == (torch.int64, torch.int32)
    assert plan.slot_mapping.dtype == torch.int64
