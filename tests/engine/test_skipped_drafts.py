"""Drafts that wait because the token budget skips their request are verified as if they had not."""

import pytest

from layerskip_vllm.measure.engine import scheduler
from tests.engine.engines import (
    as_prompts,
    close,
    counts,
    generate,
    greedy,
    make_self_llm,
    random_prompts,
)

K = 4
DRAWN = {"temperature": 1.0, "ignore_eos": True}


@pytest.fixture(scope="module", params=[4, [4, 5]], ids=["self:4", "self:auto"])
def llm(random_llama, request):
    """Layers [4, L) add nothing, so every drawn draft is accepted. Three requests fill a step."""
    model = random_llama(late_from=4, late_scale=0.0)
    config = {"draft_sample_method": "probabilistic"}
    llm = make_self_llm(
        *(model, request.param, K),
        max_num_batched_tokens=15,
        max_num_seqs=8,
        speculative_config=config,
    )
    yield llm
    close(llm)


@pytest.fixture
def waited(llm, monkeypatch):
    """Requests of which a step verified drafts that an earlier step had left out."""
    its_scheduler, skipped, waited = scheduler(llm), set(), []
    schedule = its_scheduler.schedule

    def record(*args, **kwargs):
        output = schedule(*args, **kwargs)
        waited.extend(skipped.intersection(output.scheduled_spec_decode_tokens))
        skipped.difference_update(output.num_scheduled_tokens)
        left_out = {r.request_id for r in its_scheduler.running if r.spec_token_ids}
        skipped.update(left_out.difference(output.num_scheduled_tokens))
        return output

    monkeypatch.setattr(its_scheduler, "schedule", record)
    return waited


@pytest.mark.on_v2
@pytest.mark.parametrize("greedy_first", [False, True])
def test_drawn_drafts_that_waited_are_all_accepted(llm, waited, greedy_first):
    """Beside drawn drafts, and after steps whose drafts are all greedy."""
    params = [greedy(n, seed=n, **DRAWN) for n in (20, 23, 26, 12, 13)]
    if greedy_first:
        params[:3] = [greedy(n, ignore_eos=True) for n in (20, 23, 26)]
    before = counts(llm)
    outputs = generate(llm, as_prompts(random_prompts([3] * 5)), params)
    counted = counts(llm).since(before)
    assert [len(output) for output in outputs] == [one.max_tokens for one in params]
    assert waited
    assert counted.num_accepted == counted.num_drafted > 0
