"""The lens predicts vLLM's speculation counters exactly, without running vLLM."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from layerskip_vllm.lens.acceptance import AcceptanceCounts
from layerskip_vllm.lens.lens import look
from tests.engine.engines import (
    as_prompts,
    close,
    counts,
    generate,
    greedy,
    make_self_llm,
    random_prompts,
)
from tests.models import EOS_TOKEN_ID

NUM_LAYERS = 6
MAX_TOKENS = 40
MAX_NUM_SPECULATIVE_TOKENS = 6
PROMPTS = random_prompts([5, 17, 40, 1, 23, 9, 60, 3])


@pytest.fixture(scope="module")
def path(random_llama):
    return random_llama(num_layers=NUM_LAYERS, late_scale=0.2)


@pytest.fixture(scope="module")
def model(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


@pytest.fixture(scope="module")
def stop_token_ids(model):
    """Two tokens in some continuations but not all, so that requests end at different times."""
    lens = look(model, PROMPTS, max_tokens=MAX_TOKENS)
    written = [set(t.token_ids[t.num_prompt_tokens + 1 :].tolist()) for t in lens.traces]
    some = {i for i in set.union(*written) if 0 < sum(i in ids for ids in written) < 4}
    return sorted(some)[:2]


def predicted(model, exit_layer, num_speculative_tokens, stop_ids):
    lens = look(
        model,
        PROMPTS,
        max_tokens=MAX_TOKENS,
        max_num_speculative_tokens=MAX_NUM_SPECULATIVE_TOKENS,
        stop_ids=stop_ids,
    )
    outputs = [
        trace.token_ids[trace.num_prompt_tokens :][: trace.num_new_tokens].tolist()
        for trace in lens.traces
    ]
    return outputs, lens.expect(exit_layer, num_speculative_tokens).counts


def counted(path, exit_layer, num_speculative_tokens, **params):
    llm = make_self_llm(path, exit_layer, num_speculative_tokens)
    before = counts(llm)
    outputs = generate(llm, as_prompts(PROMPTS), greedy(MAX_TOKENS, **params))
    since = counts(llm).since(before)
    close(llm)
    return outputs, AcceptanceCounts(since.num_drafts, since.num_drafted, since.num_accepted)


@pytest.mark.parametrize(
    ("exit_layer", "num_speculative_tokens"), [(1, 1), (1, 4), (3, 3), (5, 2), (5, 6)]
)
def test_counters_are_as_predicted(path, model, exit_layer, num_speculative_tokens):
    outputs, expected = predicted(model, exit_layer, num_speculative_tokens, {EOS_TOKEN_ID})
    assert 0 < expected.num_accepted < expected.num_drafted
    assert (outputs, expected) == counted(path, exit_layer, num_speculative_tokens)


def test_counters_are_as_predicted_when_requests_end_early(path, model, stop_token_ids):
    stop_ids = {EOS_TOKEN_ID, *stop_token_ids}
    outputs, expected = predicted(model, 5, 6, stop_ids)
    assert len({len(output) for output in outputs}) > 2
    assert (outputs, expected) == counted(path, 5, 6, stop_token_ids=stop_token_ids)
