"""Who stops drafting where: what is learnt, and the decision against an exhaustive search."""

import itertools

import numpy as np
import pytest

from layerskip_vllm.spec_decode.draft_stop import (
    PRIOR_MATCH_RATE,
    MatchRates,
    Prices,
    StopRule,
)

CLEAR, NARROW = 6.0, 0.4


def learnt(rates_by_lead, num_drafts=400, seed=0):
    """Rates after drafts of known leads."""
    random, rates = np.random.default_rng(seed), MatchRates()
    for _ in range(num_drafts):
        for lead, rate in rates_by_lead.items():
            rates.observe(np.array([lead]), random.random(1) < rate)
    return rates


def test_before_the_first_drafts_all_have_the_prior_rate():
    assert MatchRates().of(np.array([0.0, 0.3, 50.0])).tolist() == pytest.approx(
        [PRIOR_MATCH_RATE] * 3
    )


def test_rates_are_learnt_by_lead():
    rates = learnt({CLEAR: 0.9, NARROW: 0.3})
    assert rates.of(np.array([CLEAR, NARROW])) == pytest.approx([0.9, 0.3], abs=0.1)
    assert rates.mean == pytest.approx(0.6, abs=0.1)
    # Nothing was seen of this one: the average is believed.
    assert rates.of(np.array([2.0])) == pytest.approx(rates.mean)


def test_rates_forget():
    rates = learnt({CLEAR: 1.0})
    for _ in range(200):
        rates.observe(np.array([CLEAR]), np.array([False]))
    assert rates.of(np.array([CLEAR])) < 0.1


def test_outcomes_of_one_step_add_up():
    at_once, one_by_one = MatchRates(), MatchRates()
    leads, is_match = np.array([0.9, 0.2, 0.2]), np.array([True, False, True])
    at_once.observe(leads, is_match)
    at_once.observe(leads[:0], is_match[:0])
    for lead, match in zip(leads, is_match, strict=True):
        one_by_one.observe(np.array([lead]), np.array([match]))
    assert at_once.mean == pytest.approx(one_by_one.mean, abs=0.01)


def test_clear_drafts_go_on_and_narrow_ones_stop():
    rates = learnt({CLEAR: 0.95, NARROW: 0.1})
    rule = StopRule(rates, Prices(token=1, draft_step=0.3, verify_row=0.02), batch_size=2)
    submits, goes_on = rule.after(np.array([CLEAR, NARROW]))
    assert submits.tolist() == [True, True]  # one more row costs next to nothing
    assert goes_on.tolist() == [True, True]  # the first pays for the step, the second rides along
    submits, goes_on = rule.after(np.array([CLEAR, NARROW]))
    assert goes_on.tolist() == [True, False]


def test_hopeless_drafts_are_not_submitted_where_rows_cost():
    rates = learnt({CLEAR: 0.95, NARROW: 0.1})
    rule = StopRule(rates, Prices(token=1, draft_step=0.3, verify_row=0.5), batch_size=2)
    submits, goes_on = rule.after(np.array([CLEAR, NARROW]))
    assert submits.tolist() == [True, False]
    assert not goes_on[1]


def test_who_has_stopped_does_not_come_back():
    rates = learnt({CLEAR: 0.95, NARROW: 0.05})
    rule = StopRule(rates, Prices(token=1, draft_step=0.1, verify_row=0.2), batch_size=2)
    rule.after(np.array([CLEAR, NARROW]))
    for _ in range(3):
        goes_on = rule.after(np.array([CLEAR, CLEAR]))[1]
        assert not goes_on[1]


def test_all_stop_where_together_they_do_not_pay_for_a_step():
    rates = learnt({CLEAR: 0.9})
    for batch_size, pays in ((1, False), (4, True)):
        prices = Prices(token=1, draft_step=2, verify_row=0)
        _, goes_on = StopRule(rates, prices, batch_size).after(np.full(batch_size, CLEAR))
        assert goes_on.tolist() == [pays] * batch_size


@pytest.mark.parametrize("draft_step", [0.05, 0.15, 0.3, 0.5])
def test_it_comes_close_to_the_best_threshold(draft_step):
    """One request, drafts of two kinds: no rule 'stop after n narrow drafts or K' is better."""
    chances = {CLEAR: 0.97, NARROW: 0.45}
    random = np.random.default_rng(0)
    leads = random.choice(list(chances), size=(3000, 8))
    is_match = random.random(leads.shape) < np.vectorize(chances.get)(leads)
    accepted = np.column_stack([np.zeros(len(leads), int), np.cumprod(is_match, 1).cumsum(1)])

    def rate(num_drafts):
        tokens = 1 + accepted[np.arange(len(leads)), num_drafts]
        return tokens.sum() / (1 + draft_step * num_drafts).sum()

    narrow = np.cumsum(leads == NARROW, axis=1)
    best = max(
        rate(np.minimum((narrow < n).sum(1) + 1, k))
        for n, k in itertools.product((1, 2, 9), range(1, 9))
    )
    rates = learnt(chances)
    prices = Prices(token=1 / best, draft_step=draft_step, verify_row=0)
    num_drafts = []
    for row in leads:
        rule = StopRule(rates, prices, 1)
        stops = (not rule.after(row[k : k + 1])[1][0] for k in range(8))
        num_drafts.append(next((k + 1 for k, stop in enumerate(stops) if stop), 8))
    assert rate(np.array(num_drafts)) > 0.97 * best
