"""Replayed acceptance against a loop that drafts and verifies token by token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerskip_vllm.lens.acceptance import AcceptanceCounts, Expectation, replay


def speculate(target, drafter, num_tokens, max_tokens, num_speculative_tokens):
    """Greedy self-speculation as in the paper, on sequences instead of models.

    `target[i]` is output token i of the full model. `drafter[i]` is the exit's prediction of it
    after the true tokens before; after a wrong token the exit predicts -1.
    """
    output, counts = [target[0]], [0, 0, 0]
    while len(output) < num_tokens:
        n = len(output)
        drafts = []
        for position in range(n, min(n + num_speculative_tokens, max_tokens - 1)):
            on_track = drafts == target[n:position]
            drafts.append(drafter[position] if on_track else -1)
        accepted = 0
        while accepted < len(drafts) and drafts[accepted] == target[n + accepted]:
            accepted += 1
        output += target[n : n + accepted + 1]
        counts = [counts[0] + bool(drafts), counts[1] + len(drafts), counts[2] + accepted]
    return AcceptanceCounts(*counts)


@given(st.data(), st.integers(1, 40), st.integers(0, 9), st.integers(1, 9))
def test_counts_equal_token_by_token_speculation(
    data, num_tokens, num_left, num_speculative_tokens
):
    max_tokens = num_tokens + num_left
    length = num_tokens + num_speculative_tokens
    tokens = st.lists(st.integers(0, 1), min_size=length, max_size=length)
    target, drafter = data.draw(tokens), data.draw(tokens)
    agreements = [a == b for a, b in zip(drafter, target, strict=True)][1:]
    assert replay(agreements, num_tokens, max_tokens, num_speculative_tokens) == speculate(
        target, drafter, num_tokens, max_tokens, num_speculative_tokens
    )


@given(st.lists(st.booleans(), min_size=60, max_size=60), st.integers(1, 30), st.integers(1, 8))
def test_agreements_past_the_last_cycle_change_nothing(agreements, num_tokens, k):
    full = replay(agreements, num_tokens, 60, k)
    cut = replay(agreements[: num_tokens + k - 2], num_tokens, 60, k)
    assert full == cut


@given(st.lists(st.booleans(), min_size=60, max_size=60), st.integers(1, 30), st.integers(1, 8))
def test_no_draft_exceeds_max_tokens(agreements, max_tokens, k):
    """Prefill and each cycle emit one token; the others may be drafts."""
    counts = replay(agreements, max_tokens, max_tokens, k)
    assert counts.num_accepted + counts.num_drafts <= max(max_tokens - 1, 0)


@pytest.mark.parametrize(
    ("agrees", "expected"),
    [(True, AcceptanceCounts(3, 12, 12)), (False, AcceptanceCounts(14, 50, 0))],
)
def test_all_or_no_drafts_accepted(agrees, expected):
    # 16 tokens: one of prefill, then 15 in cycles of 5 or of 1. Of the latter the last drafts
    # nothing, and the three before it 3, 2 and 1.
    assert replay([agrees] * 20, 16, 16, 4) == expected


def test_one_token_drafts_nothing():
    counts = replay([], 1, 16, 4)
    assert counts == AcceptanceCounts()
    assert counts.acceptance_rate is None
    assert counts.mean_acceptance_length is None
    assert Expectation(8, 4, 32, counts).ideal_speedup is None


def test_agreements_that_end_too_early_are_refused():
    with pytest.raises(AssertionError, match="last cycle"):
        replay([False] * 4, 4, 16, 3)


def test_figures_of_a_pair():
    counts = AcceptanceCounts(num_drafts=10, num_drafted=40, num_accepted=30)
    expectation = Expectation(8, 4, 32, counts)
    assert counts.acceptance_rate == 0.75
    assert counts.mean_acceptance_length == 4.0
    assert expectation.ideal_speedup == 4.0 / ((4 * 8 + 32) / 32)
    assert expectation.speedup(draft_cost=0.5) == 4.0 / 3.0


@given(st.integers(1, 31), st.integers(1, 16), st.integers(0, 100))
def test_drafting_pays_exactly_above_the_break_even_rate(exit_layer, k, num_accepted):
    num_drafted = 100 * k
    expectation = Expectation(exit_layer, k, 32, AcceptanceCounts(100, num_drafted, num_accepted))
    pays = num_accepted * 32 > exit_layer * num_drafted
    breaks_even = num_accepted * 32 == exit_layer * num_drafted
    if not breaks_even:
        assert (expectation.ideal_speedup > 1) == pays
