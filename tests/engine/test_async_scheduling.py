"""With asynchronous scheduling, greedy float32 output is that of plain decoding too.

The scheduler plans a step before the last one's tokens are known. Only runner V2 has it under
`self:E`.
"""

import time

import pytest
from vllm.sampling_params import StructuredOutputsParams

from layerskip_vllm.measure.engine import scheduler
from layerskip_vllm.scheduling.scheduler import LayerSkipAsyncScheduler
from tests import runner_v2
from tests.engine.engines import (
    as_prompts,
    assert_speculated,
    close,
    counts,
    generate,
    generate_plainly,
    greedy,
    make_llm,
    make_self_llm,
    note_most_drafts,
    num_preemptions,
    random_prompts,
)
from tests.engine.seeded import requests
from tests.engine.sessions import (
    Answer,
    converse,
    mixed_conversations,
    too_long_conversation,
    turns,
)

pytestmark = pytest.mark.runner_v2

AUTO = [1, 3, 5]
EXITS = [pytest.param(3, id="self:3"), pytest.param(AUTO, id="self:auto")]
SLOW_AUTO = pytest.param(AUTO, id="self:auto", marks=pytest.mark.slow)
GRAMMAR = {"structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True}}


@pytest.fixture(scope="module")
def model(random_llama):
    """Its drafts are accepted about half of the time."""
    return random_llama(num_layers=6, late_scale=0.3)


@pytest.fixture
def open_llm(model, monkeypatch):
    """`open_llm(**settings)` -> an engine that drafts and schedules asynchronously."""

    def open_llm(model=model, exit_layer=3, num_speculative_tokens=3, **settings):
        runner_v2.schedule_asynchronously(monkeypatch)
        llm = make_self_llm(model, exit_layer, num_speculative_tokens, **settings)
        assert isinstance(scheduler(llm), LayerSkipAsyncScheduler)
        return llm

    return open_llm


@pytest.mark.parametrize("exit_layer", EXITS)
def test_chunked_prompts_mix_with_decodes(model, open_llm, exit_layer):
    prompts = as_prompts(random_prompts([70, 5, 33, 12], seed=2))
    expected = generate_plainly(model, prompts, greedy(30))
    llm = open_llm(exit_layer=exit_layer, max_num_batched_tokens=32, max_num_seqs=4)
    before = counts(llm)
    assert generate(llm, prompts, greedy(30)) == expected
    assert_speculated(counts(llm).since(before))
    close(llm)


@pytest.mark.parametrize("exit_layer", EXITS)
def test_preempted_requests_start_over(model, open_llm, exit_layer):
    prompts = as_prompts(random_prompts([40, 50, 30], seed=5))
    params = greedy(80, ignore_eos=True)
    expected = generate_plainly(model, prompts, params)
    llm = open_llm(exit_layer=exit_layer, num_gpu_blocks_override=10)
    before, preempted_before = counts(llm), num_preemptions(llm)
    assert generate(llm, prompts, params) == expected
    counted, preempted = counts(llm).since(before), num_preemptions(llm) - preempted_before
    close(llm)
    assert preempted > 0
    assert_speculated(counted)


@pytest.mark.parametrize("exit_layer", [5, SLOW_AUTO])
def test_drafts_that_a_grammar_rejects_are_cut_off(model, open_llm, exit_layer):
    """vLLM waits for the last step's tokens before it samples such a step."""
    prompts = as_prompts(random_prompts([5, 17, 9], seed=3))
    constraints = [{"regex": "[a-f]{8}-[0-9]{4}(-[x-z]{2}){3}"}, {"regex": "[ -~]{30}"}]

    def params() -> list:
        constrained = [StructuredOutputsParams(**one) for one in constraints]
        return [greedy(40, structured_outputs=one) for one in [*constrained, None]]

    expected = generate_plainly(model, prompts, params(), **GRAMMAR)
    llm = open_llm(exit_layer=exit_layer, **GRAMMAR)
    before = counts(llm)
    assert generate(llm, prompts, params()) == expected
    assert_speculated(counts(llm).since(before))
    close(llm)


@pytest.mark.parametrize("exit_layer", [3, SLOW_AUTO])
def test_a_seed_gives_plains_text(random_llama, open_llm, exit_layer):
    model = random_llama(num_layers=6, late_scale=0.15, initializer_range=0.2)
    prompts, params = requests(4, first_seed=700)
    expected = generate_plainly(model, prompts, params)
    chunks = {"max_num_batched_tokens": 32, "max_num_seqs": 4}
    llm = open_llm(model=model, exit_layer=exit_layer, **chunks)
    before = counts(llm)
    assert generate(llm, prompts, params) == expected
    assert_speculated(counts(llm).since(before))
    close(llm)


@pytest.mark.parametrize("exit_layer", EXITS)
def test_aborts_and_limits_do_not_affect_other_requests(model, open_llm, exit_layer):
    token_prompts = random_prompts([20, 7, 33, 12], seed=9)
    params = [
        greedy(40, ignore_eos=True),
        greedy(40, ignore_eos=True, extra_args={"num_speculative_tokens": 1}),
        greedy(40, ignore_eos=True),
        greedy(23, ignore_eos=True),
    ]
    expected = generate_plainly(model, as_prompts(token_prompts), greedy(40, ignore_eos=True))
    llm = open_llm(exit_layer=exit_layer)
    before, engine, finished, steps = counts(llm), llm.llm_engine, {}, 0
    for i, ids in enumerate(token_prompts):
        engine.add_request(str(i), {"prompt_token_ids": ids}, params[i])
    while engine.has_unfinished_requests():
        steps += 1
        if steps == 6:  # a step that drafted for it has not returned yet
            engine.abort_request(["2"])
        for output in engine.step():
            if output.finished:
                finished[output.request_id] = list(output.outputs[0].token_ids)
    counted = counts(llm).since(before)
    close(llm)
    assert finished == {"0": expected[0], "1": expected[1], "3": expected[3][:23]}
    assert_speculated(counted)


@pytest.mark.parametrize("exit_layer", EXITS)
def test_each_request_limits_its_drafts(model, open_llm, exit_layer):
    """Placeholders are made for K drafts of each, before the limits are known to hold."""
    prompts = as_prompts(random_prompts([20, 7, 33, 12], seed=9))
    limits = [{"num_speculative_tokens": limit} for limit in (0, 1, 2, 3)]
    expected = generate_plainly(model, prompts, greedy(20, ignore_eos=True))
    llm = open_llm(exit_layer=exit_layer)
    most = note_most_drafts(llm)
    params = [greedy(20, ignore_eos=True, extra_args=limit) for limit in limits]
    assert generate(llm, prompts, params) == expected
    close(llm)
    assert sorted(most.values()) == [1, 2, 3]


@pytest.mark.parametrize("is_early", [False, True])
@pytest.mark.parametrize(
    ("exit_layer", "late_scale"),
    [(3, 0.0), (3, 0.3), pytest.param(AUTO, 0.3, marks=pytest.mark.slow)],
)
def test_sessions_go_on_wherever_an_answer_ends(
    random_llama, open_llm, exit_layer, late_scale, is_early
):
    """The step after an answer's end is in flight when the next input is scheduled."""
    model = random_llama(late_from=3, late_scale=late_scale)
    conversations = mixed_conversations()
    plain = make_llm(model)
    expected = converse(plain, conversations)
    close(plain)
    chunks = {"max_num_batched_tokens": 32}
    llm = open_llm(model=model, exit_layer=exit_layer, num_speculative_tokens=4, **chunks)
    before = counts(llm)
    assert converse(llm, conversations, is_early) == expected
    counted = counts(llm).since(before)
    close(llm)
    assert counted.num_resumed > 0
    assert counted.num_accepted > 0


@pytest.mark.parametrize("is_early", [False, True])
def test_sessions_outlive_a_preemption_before_their_last_tokens(random_llama, open_llm, is_early):
    """The tokens of the step in flight end answers of requests that have no KV any more."""
    model = random_llama(num_layers=6, late_from=3, late_scale=0.0)  # every draft is accepted
    conversations = [
        turns([n, 12, 12], greedy(24, ignore_eos=True), seed=n) for n in (40, 50, 30, 44)
    ]
    plain = make_llm(model)
    expected = converse(plain, conversations)
    close(plain)
    llm, num_went_on_without_kv = open_llm(model=model, num_speculative_tokens=4), 0
    preempted = set()
    its_scheduler = scheduler(llm)
    handle_stopped_request = its_scheduler._handle_stopped_request

    def count(request):
        nonlocal num_went_on_without_kv
        has_kv = request.num_computed_tokens > 0
        has_ended = handle_stopped_request(request)
        num_went_on_without_kv += not has_kv and not has_ended
        return has_ended

    def preempt(num_steps):
        """Each request once an answer, when the step in flight may end it."""
        for request in list(its_scheduler.running):
            answer = request.request_id, request.num_prompt_tokens
            num_expected = request.num_output_tokens + request.num_output_placeholders
            if num_expected >= request.max_tokens and answer not in preempted:
                preempted.add(answer)
                its_scheduler.running.remove(request)
                its_scheduler._preempt_request(request, time.monotonic())

    its_scheduler._handle_stopped_request = count
    assert converse(llm, conversations, is_early, preempt) == expected
    close(llm)
    assert num_went_on_without_kv > 2


@pytest.mark.parametrize("is_early", [False, True])
def test_an_input_beyond_max_model_len_is_refused(model, open_llm, is_early):
    """Also while a step that drafted for its session is in flight."""
    conversation, fitting = too_long_conversation()
    plain = make_llm(model)
    ((first, second, third),) = converse(plain, [fitting])
    close(plain)
    llm = open_llm()
    answers = converse(llm, [conversation], is_early)
    close(llm)
    assert answers == [[first, Answer.refused(), second, third, Answer.refused()]]
