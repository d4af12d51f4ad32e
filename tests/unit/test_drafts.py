"""What became of drafts, against a loop."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from layerskip_vllm.spec_decode.drafts import Drafts

WIDTH = 4


@st.composite
def cycles(draw):
    """Drafts of some requests, and a step that verified some of them among others."""
    num_drafting = draw(st.integers(1, 5))
    rows = []
    for i in range(num_drafting):
        drafted = draw(st.integers(1, WIDTH))
        submitted = drafted - draw(st.integers(0, 1))
        token_ids = draw(st.lists(st.integers(0, 2), min_size=WIDTH, max_size=WIDTH))
        accepted = draw(st.integers(0, submitted))
        # The step samples what it accepts, and one token more.
        extra = draw(st.integers(0, 2))
        if accepted < submitted and extra == token_ids[accepted]:
            extra = 3
        fate = draw(st.sampled_from(["verified", "gone", "moved"]))
        rows.append((f"r{i}", 10 * i, token_ids, drafted, submitted, accepted, extra, fate))
    order = draw(st.permutations([row for row in rows if row[-1] != "gone"]))
    return rows, order


@given(cycles())
def test_outcomes_equal_a_loop_over_the_requests(cycle):
    rows, order = cycle
    drafts = Drafts(
        req_ids=[row[0] for row in rows],
        start_positions=np.array([row[1] for row in rows]),
        token_ids=np.array([row[2] for row in rows]),
        leads=np.arange(len(rows) * WIDTH).reshape(-1, WIDTH) / 100,
        num_drafted=np.array([row[3] for row in rows]),
        num_submitted=np.array([row[4] for row in rows]),
    )
    sampled = np.full((len(order) + 1, WIDTH + 1), -1)
    sampled[-1, 0] = 1  # another request's
    computed = [999] * (len(order) + 1)
    for i, (_, start, token_ids, _, _, accepted, extra, fate) in enumerate(order):
        sampled[i, : accepted + 1] = [*token_ids[:accepted], extra]
        computed[i] = start + (fate == "moved")
    expected = []
    for i, (_, _, token_ids, drafted, _, accepted, extra, fate) in enumerate(rows):
        if fate != "verified":
            continue
        for k, said in enumerate([*token_ids[:accepted], extra][:drafted]):
            expected.append(((WIDTH * i + k) / 100, said == token_ids[k]))

    outcomes = drafts.outcomes([row[0] for row in order] + ["other"], np.array(computed), sampled)
    assert list(zip(outcomes.leads, outcomes.is_match, strict=True)) == expected


def test_a_step_that_sampled_one_token_each_tells_the_first_drafts():
    drafts = Drafts(
        ["a"], np.array([5]), np.array([[7, 8]]), np.ones((1, 2)), np.array([2]), np.array([2])
    )
    outcomes = drafts.outcomes(["a"], np.array([5]), np.array([[9]]))
    assert outcomes.is_match.tolist() == [False]
    assert drafts.submitted(0) == [7, 8]
