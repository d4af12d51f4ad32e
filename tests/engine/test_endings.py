"""Requests that end inside an accepted run, at the model's limit, or by an abort."""

import pytest

from layerskip_vllm.measure.engine import scheduler
from tests.engine.engines import (
    as_prompts,
    close,
    counts,
    generate,
    generate_plainly,
    greedy,
    make_llm,
    make_self_llm,
    num_preemptions,
    random_prompts,
)

K = 4
PROMPT_LENGTHS = [5, 17, 40, 9]


@pytest.fixture(scope="module")
def prompts():
    return as_prompts(random_prompts(PROMPT_LENGTHS, seed=7))


@pytest.fixture(scope="module")
def model(random_llama):
    """Layers [3, L) add nothing: every draft is accepted, so requests end inside a run."""
    return random_llama(late_from=3, late_scale=0.0)


@pytest.fixture(scope="module")
def plain(model):
    llm = make_llm(model)
    yield llm
    close(llm)


@pytest.fixture(scope="module")
def llm(model, plain):
    # After `plain`: a new engine takes over vLLM's counters.
    llm = make_self_llm(model, 3, K)
    yield llm
    close(llm)


@pytest.fixture(scope="module")
def outputs(plain, prompts):
    """Plain outputs without stops, from which the tests choose stops."""
    return generate(plain, prompts, greedy(40, ignore_eos=True))


@pytest.mark.on_v2
def test_every_draft_is_accepted_if_the_remaining_layers_add_nothing(llm, prompts, outputs):
    max_tokens = 1 + 5 * (K + 1)
    before = counts(llm)
    assert generate(llm, prompts, greedy(max_tokens, ignore_eos=True)) == [
        ids[:max_tokens] for ids in outputs
    ]
    counted = counts(llm).since(before)
    assert counted.num_accepted == counted.num_drafted
    # One token comes with the prompt, then each of 5 cycles brings K drafts and a bonus token.
    assert counted.num_drafts == 5 * len(prompts)
    assert 1 + counted.num_accepted / counted.num_drafts == K + 1
    assert counted.num_resumed == counted.num_drafts + counted.num_drafted  # t, and its drafts


@pytest.mark.parametrize("max_tokens", range(1, 2 * (K + 1) + 2))
def test_max_tokens_cuts_an_accepted_run(llm, plain, prompts, max_tokens):
    params = greedy(max_tokens, ignore_eos=True)
    assert generate(llm, prompts, params) == generate(plain, prompts, params)


@pytest.mark.on_v2
@pytest.mark.parametrize("max_tokens", range(1, K + 4))
def test_no_draft_follows_the_last_token(llm, prompts, max_tokens):
    before = counts(llm)
    generate(llm, prompts[:1], greedy(max_tokens, ignore_eos=True))
    # The first token comes with the prompt, and the last one is the bonus token.
    most_drafts = max(0, max_tokens - 2)
    assert counts(llm).since(before).num_drafted == min(K, most_drafts)


def test_the_last_draft_has_a_slot_for_its_early_layers(llm):
    """t and K drafts lie beyond the computed tokens; vLLM's `draft_model` reserves K slots."""
    assert scheduler(llm).num_lookahead_tokens == K + 1


def finish(llm, prompts, params):
    return [
        (list(o.token_ids), o.text, o.finish_reason, o.stop_reason)
        for output in llm.generate(prompts, params, use_tqdm=False)
        for o in output.outputs
    ]


@pytest.mark.parametrize("position", range(K + 2, 2 * (K + 1) + 3))
def test_a_stop_token_cuts_an_accepted_run(llm, plain, prompts, outputs, position):
    params = greedy(40, stop_token_ids=[ids[position] for ids in outputs])
    expected = finish(plain, prompts, params)
    assert finish(llm, prompts, params) == expected
    assert all(reason == "stop" and len(ids) <= position + 1 for ids, _, reason, _ in expected)


@pytest.mark.parametrize("position", range(K + 2, 2 * (K + 1) + 3))
def test_a_stop_string_cuts_an_accepted_run(llm, plain, prompts, outputs, position):
    # The model's bytes are random: stop at the first ASCII character from this position on.
    decode = llm.get_tokenizer().decode
    stops = [
        next(text for text in (decode([i]) for i in ids[position:]) if text and text.isascii())
        for ids in outputs
    ]
    params = greedy(40, stop=stops)
    expected = finish(plain, prompts, params)
    assert finish(llm, prompts, params) == expected
    assert any(reason == "stop" for _, _, reason, _ in expected)


def test_a_request_may_end_right_after_min_tokens(llm, plain):
    """At no later token, wherever it is in a step."""
    prompts = as_prompts(random_prompts([5, 17, 40, 9, 3, 20, 6, 11], seed=9))
    eos = plain.get_tokenizer().eos_token_id
    params = [greedy(40, min_tokens=10 + n, logit_bias={eos: 100}) for n in range(len(prompts))]
    expected = generate(plain, prompts, params)
    assert [len(ids) for ids in expected] == [11 + n for n in range(len(prompts))]
    before = counts(llm)
    assert generate(llm, prompts, params) == expected
    assert counts(llm).since(before).num_drafted > 0


def test_the_end_of_text_token_cuts_an_accepted_run(random_llama, prompts, outputs):
    ended = []
    for position in (K + 2, K + 4):
        model = random_llama(late_from=3, late_scale=0.0, eos_token_id=outputs[0][position])
        plain, llm = make_llm(model), make_self_llm(model, 3, K)
        expected = finish(plain, prompts, greedy(40))
        assert finish(llm, prompts, greedy(40)) == expected
        ended.append(expected[0][2] == "stop" and len(expected[0][0]) <= position + 1)
        close(plain)
        close(llm)
    assert all(ended)


@pytest.mark.parametrize(
    ("max_model_len", "num_speculative_tokens"), [(64, 4), (65, 4), (66, 4), (67, 7), (96, 9)]
)
def test_a_request_reaches_max_model_len_while_another_keeps_drafting(
    model, max_model_len, num_speculative_tokens
):
    prompts = as_prompts(random_prompts([max_model_len - 9, 5, max_model_len - 1], seed=8))
    params = greedy(max_model_len, ignore_eos=True)
    expected = generate_plainly(model, prompts, params, max_model_len=max_model_len)
    llm = make_self_llm(model, 3, num_speculative_tokens, max_model_len=max_model_len)
    before = counts(llm)
    assert generate(llm, prompts, params) == expected
    counted = counts(llm).since(before)
    close(llm)
    assert len(expected[0]) == 9
    assert len(expected[1]) == max_model_len - 5
    assert counted.num_accepted == counted.num_drafted > 0


@pytest.mark.on_v2
def test_aborts_do_not_affect_other_requests(random_llama):
    model = random_llama(late_scale=0.3)
    prompts = random_prompts([20, 7, 33, 12, 5, 28], seed=9)
    expected = generate_plainly(model, as_prompts(prompts), greedy(60, ignore_eos=True))

    llm = make_self_llm(model, 4, K)
    before, engine = counts(llm), llm.llm_engine
    for i, ids in enumerate(prompts):
        engine.add_request(f"r{i}", {"prompt_token_ids": ids}, greedy(60, ignore_eos=True))
    finished, steps = {}, 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                finished[output.request_id] = list(output.outputs[0].token_ids)
        steps += 1
        if steps in (4, 9):  # abort two requests while their drafts wait for verification
            engine.abort_request([f"r{steps % 4}", f"r{steps % 4 + 2}"])
            engine.add_request(
                f"again{steps}", {"prompt_token_ids": prompts[0]}, greedy(20, ignore_eos=True)
            )
    assert finished.pop("again4") == finished.pop("again9") == expected[0][:20]
    assert sorted(finished) == ["r4", "r5"]
    assert [finished["r4"], finished["r5"]] == expected[4:]
    assert counts(llm).since(before).num_resumed > 0
    close(llm)


def test_preempted_requests_do_not_resume(random_llama):
    """All are preempted and rescheduled in the next step, with the same ids and other blocks."""
    model = random_llama(late_scale=0.3)
    prompts = random_prompts([31, 31, 31, 64], seed=10)
    prompts[1] = prompts[0]  # one finds the other's blocks in the prefix cache
    params = greedy(80, ignore_eos=True)
    expected = generate_plainly(model, as_prompts(prompts), params)

    llm = make_self_llm(model, 4, K)
    before, preempted_before = counts(llm), num_preemptions(llm)
    engine, finished, steps = llm.llm_engine, {}, 0
    for i, ids in enumerate(prompts):
        engine.add_request(str(i), {"prompt_token_ids": ids}, params)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                finished[output.request_id] = list(output.outputs[0].token_ids)
        steps += 1
        if steps % 3 == 0 and steps < 30:
            engine.reset_prefix_cache(reset_running_requests=True)
    counted, preempted = counts(llm).since(before), num_preemptions(llm) - preempted_before
    close(llm)
    assert preempted >= len(prompts)
    assert counted.num_resumed > 0
    assert counted.num_accepted > 0
    assert [finished[str(i)] for i in range(len(prompts))] == expected
