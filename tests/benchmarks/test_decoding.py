"""A batch's figures follow from its steps."""

import pytest

from layerskip_vllm.measure.decoding import Decoding, DraftCounts


def decoding(num_new_tokens, step_s=None):
    """A batch with these steps, whose outputs have matching lengths."""
    totals = [sum(row) for row in zip(*num_new_tokens, strict=True)]
    return Decoding(
        step_s=step_s or [1.0] * len(num_new_tokens),
        num_new_tokens=num_new_tokens,
        token_ids=[list(range(n)) for n in totals],
        time_to_first_token_s=[0.0] * len(totals),
        time_per_output_token_s=[0.0] * len(totals),
    )


def test_full_steps_begin_when_the_last_request_has_its_first_token():
    assert decoding([[1, 0], [1, 1], [1, 1], [1, 1], [0, 1]]).full_steps() == range(2, 3)


def test_the_step_that_ends_a_request_is_left_out():
    assert decoding([[1, 1], [3, 1], [3, 1], [2, 1], [0, 1]]).full_steps() == range(1, 3)


def test_speed_counts_only_full_steps():
    measured = decoding([[1, 1], [2, 3], [4, 1], [1, 1]], step_s=[9.0, 0.5, 1.5, 7.0])
    assert measured.tokens_per_s == 10 / 2.0
    assert measured.tokens_per_step == 10 / (2 * 2)


def test_a_batch_that_ends_at_once_is_refused():
    with pytest.raises(ValueError, match="more tokens"):
        decoding([[1, 1], [1, 1]]).full_steps()


def test_acceptance_per_token_ignores_tokens_after_a_rejection():
    # Drafts of 4: one accepted whole, one rejected at its first token.
    counts = DraftCounts(num_drafts=2, num_drafted=8, num_accepted=4, num_cut_short=1)
    assert counts.acceptance_rate == 0.5
    assert counts.mean_acceptance_length == 3
    assert counts.acceptance_per_token == 0.8


def test_without_drafts_there_is_no_acceptance():
    counts = DraftCounts()
    assert counts.acceptance_rate is None
    assert counts.mean_acceptance_length is None
    assert counts.acceptance_per_token is None
