"""Sessions with streaming input give plain decoding's answers, in whatever way an answer ends."""

import pytest
import torch

from layerskip_vllm.measure.engine import scheduler
from tests.engine.engines import (
    as_prompts,
    assert_speculated,
    close,
    counts,
    generate,
    greedy,
    make_llm,
    make_self_llm,
    random_prompts,
    runner,
)
from tests.engine.kv_memory import KvMemory
from tests.engine.sessions import (
    STOPS,
    Answer,
    Session,
    converse,
    mixed_conversations,
    too_long_conversation,
    turns,
)
from tests.engine.stepped import ScheduleRecorder, computed_kv

K = 4
AUTO = [1, 3, 4]
INPUT_LENGTHS = [40, 12, 12]
ONE_TOKEN_LENGTHS = [40, 1, 1]
"""An input of one token takes the place of the answer's last one, where drafts began."""


@pytest.fixture(scope="module")
def model(random_llama):
    """Layers [4, L) add nothing: every draft is accepted, so answers end inside a run."""
    return random_llama(late_from=4, late_scale=0.0)


@pytest.fixture(scope="module")
def plain(model):
    llm = make_llm(model)
    yield llm
    close(llm)


@pytest.fixture(scope="module")
def llm(model, plain):
    # After `plain`: a new engine takes over vLLM's counters.
    llm = make_self_llm(model, 4, K)
    yield llm
    close(llm)


@pytest.fixture(scope="module")
def free(plain):
    """An answer to the first input without stops, from which the tests choose stops."""
    prompts = as_prompts(random_prompts(INPUT_LENGTHS[:1], seed=3))
    return generate(plain, prompts, greedy(12, ignore_eos=True))[0]


@pytest.mark.on_v2
@pytest.mark.parametrize("is_early", [False, True])
@pytest.mark.parametrize("lengths", [INPUT_LENGTHS, ONE_TOKEN_LENGTHS])
def test_a_session_goes_on_after_a_stop_token_inside_an_accepted_run(
    llm, plain, free, lengths, is_early
):
    conversations = [
        turns(lengths, greedy(20, stop_token_ids=[token_id]), greedy(9)) for token_id in free
    ]
    expected = converse(plain, conversations, is_early)
    before, its_scheduler = counts(llm), scheduler(llm)

    def check(num_steps):
        """No draft of an answer that has ended waits for the next input."""
        waiting = set(its_scheduler.requests.values()).difference(its_scheduler.running)
        assert not any(request.spec_token_ids for request in waiting)

    assert converse(llm, conversations, is_early, check) == expected
    assert counts(llm).since(before).num_accepted > 0
    assert {len(answers[0].token_ids) % (K + 1) for answers in expected} == set(range(K + 1))
    assert all(answers[0].finish_reason == "stop" for answers in expected)


@pytest.mark.on_v2
@pytest.mark.parametrize("is_early", [False, True])
@pytest.mark.parametrize("lengths", [INPUT_LENGTHS, ONE_TOKEN_LENGTHS])
def test_a_session_goes_on_after_max_tokens(llm, plain, lengths, is_early):
    conversations = [turns(lengths, greedy(n, ignore_eos=True)) for n in (*range(1, 9), 20)]
    expected = converse(plain, conversations, is_early)
    assert converse(llm, conversations, is_early) == expected
    assert all(a.finish_reason == "length" for answers in expected for a in answers)


OPTIONS = [{"layerskip": False}, None, {"num_speculative_tokens": 1}, {"layerskip": False}, None]


@pytest.mark.on_v2
@pytest.mark.parametrize("is_early", [False, True])
def test_each_input_brings_its_own_limit_of_drafts(llm, plain, is_early):
    params = [greedy(11, ignore_eos=True, extra_args=options) for options in OPTIONS]
    conversation = list(zip(random_prompts([20] * 5, seed=5), params, strict=True))
    expected = converse(plain, [conversation], is_early)
    its_scheduler, most = scheduler(llm), {}

    def record(num_steps):
        (request,) = its_scheduler.requests.values()
        options = str(request.sampling_params.extra_args)
        most[options] = max(most.get(options, 0), len(request.spec_token_ids))

    assert converse(llm, [conversation], is_early, record) == expected
    assert list(most.values()) == [0, K, 1]
    assert not its_scheduler._limits  # nothing is left of a session


@pytest.mark.on_v2
@pytest.mark.parametrize("is_early", [False, True])
def test_an_input_beyond_max_model_len_is_refused_and_its_session_goes_on(llm, plain, is_early):
    """It ends plain vLLM. Where nothing else runs, a step answers it alone."""
    conversation, fitting = too_long_conversation()
    other = turns(INPUT_LENGTHS, greedy(40, ignore_eos=True), seed=8)
    (first, second, third), its_answers = converse(plain, [fitting, other], is_early)
    expected = [first, Answer.refused(), second, third, Answer.refused()]
    assert len(third.token_ids) == 1
    assert converse(llm, [conversation, other], is_early) == [expected, its_answers]
    assert converse(llm, [conversation], is_early) == [expected]


@pytest.mark.on_v2
def test_an_aborted_session_leaves_nothing_to_the_next(llm, plain):
    conversation = turns(INPUT_LENGTHS, greedy(16, ignore_eos=True))
    (expected,) = converse(plain, [conversation])
    engine = llm.llm_engine.engine_core
    for num_steps in range(1, 9):  # in each of the three answers, and between them
        session = Session(llm, conversation, request_id="aborted")
        session.send()
        for _ in range(num_steps):
            for output in engine.get_output().outputs:
                if session.read(output):
                    session.send()
        session.abort()
        assert not scheduler(llm).requests
        again = Session(llm, conversation, request_id="aborted")
        assert converse(llm, [again]) == [expected]


@pytest.mark.parametrize("level", [0, 1])
def test_a_pause_leaves_sessions_unchanged(llm, plain, level):
    """On a CPU, level 1 (sleep) only pauses and drops the cached KV."""
    conversations = [
        turns(INPUT_LENGTHS, greedy(n, stop_token_ids=STOPS), seed=n) for n in (7, 11, 16)
    ]
    expected = converse(plain, conversations)

    num_pauses = 0

    def pause(num_steps):
        nonlocal num_pauses
        # vLLM cannot drop the KV of a session between two answers.
        if num_steps % 3 and not (level and scheduler(llm).kv_holding_waiting):
            llm.llm_engine.sleep(level, mode="keep")
            assert llm.llm_engine.engine_core.get_output().outputs == []
            assert llm.llm_engine.wake_up(["scheduling"] if level == 0 else None)
            num_pauses += 1

    assert converse(llm, conversations, between_steps=pause) == expected
    assert num_pauses > 3


@pytest.mark.parametrize(
    ("is_early", "exit_layer"),
    [
        pytest.param(False, 4, marks=pytest.mark.on_v2),
        pytest.param(True, 4, marks=pytest.mark.on_v2),
        (True, AUTO),
    ],
)
def test_sessions_are_preempted_and_chunked(random_llama, is_early, exit_layer):
    model, conversations = random_llama(late_scale=0.3), mixed_conversations()
    plain = make_llm(model)
    expected = converse(plain, conversations)
    close(plain)
    llm = make_self_llm(model, exit_layer, K, max_num_batched_tokens=32, max_num_seqs=4)
    before, its_scheduler, num_preempted = counts(llm), scheduler(llm), 0

    def preempt(num_steps):
        nonlocal num_preempted
        # vLLM cannot drop the KV of a session between two answers.
        if num_steps % 4 == 3 and num_steps < 80 and not its_scheduler.kv_holding_waiting:
            num_preempted += sum(r.num_output_tokens > 0 for r in its_scheduler.running)
            llm.llm_engine.reset_prefix_cache(reset_running_requests=True)

    answers = converse(llm, conversations, is_early, preempt)
    counted = counts(llm).since(before)
    close(llm)
    assert answers == expected
    assert num_preempted > 3
    assert_speculated(counted)
    reasons = {answer.finish_reason for answers in expected for answer in answers}
    assert reasons == {"stop", "length"}


@pytest.mark.on_v2
@pytest.mark.parametrize("exit_layer", [4, AUTO])
def test_cached_blocks_hold_nothing_of_rejected_drafts(random_llama, exit_layer):
    """A session's blocks, cached across its turns, equal those of a prefill of its tokens."""
    model, kept = random_llama(late_scale=0.3), []
    llm = make_self_llm(model, exit_layer, K)
    recorder, memory, before = ScheduleRecorder(llm), KvMemory(runner(llm)), counts(llm)
    conversation = turns([40, 12, 12, 1, 60], greedy(25, stop_token_ids=STOPS))
    converse(llm, [conversation], between_steps=lambda _: kept.extend(recorder.scheduler.running))
    counted, token_ids = counts(llm).since(before), kept[-1].prompt_token_ids
    pool = recorder.scheduler.kv_cache_manager.block_pool
    blocks = [pool.get_cached_block(key, [0])[0].block_id for key in kept[-1].block_hashes]
    num_cached = len(token_ids) // memory.block_size * memory.block_size
    cached = memory.read(blocks, num_cached)
    again = {"prompt_token_ids": token_ids}
    (output,) = llm.generate([again], greedy(20), use_tqdm=False)
    close(llm)
    assert 0 < counted.num_accepted < counted.num_drafted
    assert output.num_cached_tokens == num_cached

    plain = make_llm(model, enable_prefix_caching=False)
    (expected,), (fresh,) = computed_kv(plain, [token_ids], 1)
    assert generate(plain, [again], greedy(20)) == [list(output.outputs[0].token_ids)]
    close(plain)
    assert output.outputs[0].token_ids[:1] == expected
    assert torch.allclose(cached, fresh[:, :num_cached], atol=1e-5, rtol=1e-5)


def test_a_session_goes_on_after_the_end_of_text_token(random_llama, free):
    conversation = turns(INPUT_LENGTHS, greedy(12))
    for position in (K - 1, K + 2):
        model = random_llama(late_from=4, late_scale=0.0, eos_token_id=free[position])
        other, llm = make_llm(model), make_self_llm(model, 4, K)
        expected = converse(other, [conversation])
        assert converse(llm, [conversation]) == expected
        close(other)
        close(llm)
        assert expected[0][0] == Answer(free[: position + 1], "stop")
