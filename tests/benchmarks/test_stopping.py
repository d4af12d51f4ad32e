"""Replayed drafts against counting by hand."""

import numpy as np
import pytest

from benchmarks.stopping import Del, Drafts, Fixed, Ours, replay, told_apart


def drafts(is_match, leads=None, top_probs=None):
    is_match = np.array(is_match, bool)
    scores = np.where(is_match, 0.9, 0.1)
    return Drafts(
        leads=np.array(leads) if leads is not None else 8 * scores,
        top_probs=np.array(top_probs) if top_probs is not None else scores,
        is_match=is_match,
    )


@pytest.mark.parametrize(
    ("num_drafts", "drafted", "num_tokens"),
    [
        (0, [0] * 5, [1] * 5),
        (1, [1, 1, 1, 1], [2, 1, 1, 2]),
        (2, [2, 2, 1], [3, 1, 2]),
        (4, [4, 2, 1], [3, 1, 2]),
    ],
)
def test_fixed_lengths_by_hand(num_drafts, drafted, num_tokens):
    """Cycle by cycle; the text's end cuts the last ones short."""
    text = drafts([1, 1, 0, 0, 1])
    expected = sum(num_tokens) / sum(1 + 0.5 * n for n in drafted)
    assert replay([text], Fixed(num_drafts), 0.5) == pytest.approx(expected)


def test_del_cuts_below_the_middle():
    rule = Del()
    rule.learn(drafts([1, 0], top_probs=[0.8, 0.2]), slice(0, 2), 1, 1)
    assert rule.num_drafts(drafts([1, 1, 1], top_probs=[0.9, 0.4, 0.9]), 0) == (2, 1)
    assert rule.num_drafts(drafts([1, 1], top_probs=[0.9, 0.6]), 0) == (2, 2)


def test_scores_that_tell_all_some_and_nothing():
    is_match = np.array([True, True, False, False])
    assert told_apart(np.array([4, 3, 2, 1]), is_match) == 1
    assert told_apart(np.array([1, 2, 3, 4]), is_match) == 0
    assert told_apart(np.array([1, 1, 1, 1]), is_match) == 0.5
    assert told_apart(np.array([4, 2, 3, 1]), is_match) == 0.75


def test_leads_that_tell_the_outcome_beat_every_fixed_length():
    random = np.random.default_rng(0)
    texts = [drafts(random.random(200) < 0.7) for _ in range(20)]
    best_fixed = max(replay(texts, Fixed(k), 0.2) for k in range(1, 9))
    assert replay(texts, Ours(0.2), 0.2) > 1.1 * best_fixed
