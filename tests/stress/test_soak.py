"""One minute of the differential soak; `make soak MINUTES=30` runs the full one."""

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.stress.answers import (
    Answer,
    Choice,
    Difference,
    differences,
    is_tie,
    tie_request,
)
from tests.stress.consistency import Delivered, faults, speculation_faults
from tests.stress.jobs import (
    ABORTED,
    BUDGET,
    FEATURES,
    MAX_PROMPT_LEN,
    SAMPLED,
    Job,
    random_job,
    random_tokens,
)
from tests.stress.soak import PLAIN, SELF, soak


@pytest.mark.slow
def test_a_minute_under_load_shows_no_difference_and_no_error(random_llama):
    report = soak(random_llama(num_layers=6, late_scale=0.3), minutes=1, seed=1)
    print("\n".join(report.lines()))
    assert report.faults == []
    # Ties are rare float32 coincidences; many would point to a fault.
    assert report.num_ties <= report.num_compared_tokens / 10_000
    assert report.num_aborts > 0
    ours = report.counted[SELF]
    assert 0 < ours["spec_decode_num_accepted_tokens"] < ours["spec_decode_num_draft_tokens"]
    assert ours["layerskip_num_resumed_tokens"] > 0
    assert all(report.counted[side]["num_preemptions"] > 0 for side in (PLAIN, SELF))
    features = report.features.keys()
    assert {"logprobs", "stop", "n", "logit_bias", "min_tokens"} <= features
    assert {"temperature", "seed", "min_p", "top_p", "top_k"} <= features


JOB = Job([5, 6, 7], max_tokens=9)


def answer(*token_ids: int, is_aborted: bool = False, **fields) -> Answer:
    ended = {"finish_reason": "length", "text": "x" * len(token_ids)} | fields
    usage = {"completion_tokens": len(token_ids)}
    return Answer({0: Choice(list(token_ids), **ended)}, usage, is_aborted)


@pytest.mark.parametrize(
    ("plain", "speculating", "what"),
    [
        (answer(1, 2, 3), answer(1, 2, 3), []),
        (answer(1, 2, 3), answer(1, 4, 3), ["token"]),
        (answer(1, 2, 3), answer(1, 2), ["token_ids", "text"]),
        (answer(1, 2), answer(1, 2, finish_reason="stop"), ["finish_reason"]),
        (answer(1, 2, logprobs=[-1.0]), answer(1, 2, logprobs=[-1.001]), ["logprobs"]),
        (answer(1, 2, logprobs=[-1.0]), answer(1, 2, logprobs=[-1.00001]), []),
        (answer(1, 2, 3, is_aborted=True), answer(1, 2, is_aborted=True), []),
        (answer(1, 2, 3, is_aborted=True), answer(1, 3, is_aborted=True), ["token"]),
        (answer(1), Answer({0: answer(1).choices[0]}, {"completion_tokens": 2}), ["usage"]),
    ],
)
def test_answers_are_compared(plain, speculating, what):
    assert [found.what for found in differences(plain, speculating)] == what


def delivered(*answers: Answer) -> Delivered:
    everything = Delivered()
    for received in answers:
        everything.add(JOB, received, num_speculative_tokens=2)
    return everything


@pytest.mark.parametrize(
    ("received", "generated", "is_right"),
    [
        (answer(1, 2, 3), 3, True),
        (answer(1, 2, 3), 4, False),
        (answer(1, 2, 3, stop_reason="x"), 5, True),
        (answer(1, 2, 3, stop_reason="x"), 6, False),
        (answer(1, 2, is_aborted=True), 9, True),
        (answer(1, 2, is_aborted=True), 10, False),
        (answer(1, 2, is_aborted=True), 1, False),
    ],
)
def test_generated_tokens_must_be_accounted_for(received, generated, is_right):
    counted = {
        ("vllm:generation_tokens_total",): generated,
        ("vllm:prompt_tokens_total",): 3,
        ("vllm:request_success_total",): 1,
    }
    assert (faults(counted, delivered(received)) == []) == is_right


SPECULATED = {
    ("vllm:spec_decode_num_drafts_total",): 4,
    ("vllm:spec_decode_num_draft_tokens_total",): 8,
    ("vllm:spec_decode_num_accepted_tokens_total",): 5,
    ("vllm:spec_decode_num_accepted_tokens_per_pos_total", "0"): 3,
    ("vllm:spec_decode_num_accepted_tokens_per_pos_total", "1"): 2,
    ("vllm:layerskip_num_resumed_tokens_total",): 8,
    ("vllm:layerskip_num_fresh_tokens_total",): 7,
    ("vllm:layerskip_draft_time_seconds_sum",): 0.1,
    ("vllm:layerskip_verify_time_seconds_sum",): 0.1,
    ("vllm:generation_tokens_total",): 10,
}


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {("vllm:spec_decode_num_draft_tokens_total",): 9},
        {("vllm:spec_decode_num_accepted_tokens_total",): 6},
        {("vllm:spec_decode_num_accepted_tokens_per_pos_total", "0"): 1},
        {("vllm:layerskip_num_resumed_tokens_total",): 13},
        {("vllm:layerskip_num_fresh_tokens_total",): 1},
        {("vllm:layerskip_draft_time_seconds_sum",): 0.0},
    ],
)
def test_counters_of_drafts_must_agree(wrong):
    found = speculation_faults(SPECULATED | wrong, delivered(answer(*range(9))), 2)
    assert (found == []) == (wrong == {})


def test_aborting_does_not_change_the_request():
    assert replace(JOB, abort_after=2).request() == JOB.request()


@pytest.mark.parametrize(
    ("token_ids", "logprobs", "tie"),
    [
        ([1, 2, 8], {"token_id:8": -0.5, "token_id:9": -0.50005}, True),
        ([1, 2, 8], {"token_id:8": -0.5, "token_id:9": -0.51}, False),
        ([1, 2, 8], {"token_id:8": -0.5, "token_id:7": -0.5}, False),
        ([1, 3, 8], {"token_id:8": -0.5, "token_id:9": -0.5}, False),
    ],
)
def test_a_tie_is_decided_by_the_plain_servers_logprobs(token_ids, logprobs, tie):
    choice = SimpleNamespace(
        token_ids=token_ids, logprobs=SimpleNamespace(top_logprobs=[{}, {}, logprobs])
    )
    assert is_tie(choice, [1, 2], Difference("token", 0, 2, 8, 9)) == tie


def test_a_tie_request_keeps_the_features():
    job = replace(JOB, options={"n": 2, "stop": ["x"]}, extra_body={"min_tokens": 5})
    request = tie_request(job, [1, 2])
    assert (request["max_tokens"], request["n"], request["stop"]) == (3, 1, ["x"])
    assert request["extra_body"]["min_tokens"] == 3


def test_random_jobs_have_all_features_and_fit_the_servers():
    rng = random.Random(3)
    prefixes = [random_tokens(rng, 64)]
    jobs = [random_job(rng, prefixes) for _ in range(2000)]
    assert {len(job.prompt) > BUDGET for job in jobs} == {True, False}
    assert max(len(job.prompt) for job in jobs) <= MAX_PROMPT_LEN
    assert all(job.extra_body.get("min_tokens", 1) <= job.max_tokens for job in jobs)
    assert all(
        "seed" in job.options or job.extra_body["top_k"] == 1
        for job in jobs
        if "temperature" in job.options
    )
    sampled = sum("top_p" in job.options for job in jobs) / len(jobs)
    assert sampled == pytest.approx(0.3 * SAMPLED, abs=0.03)
    aborted = sum(job.abort_after is not None for job in jobs) / len(jobs)
    assert aborted == pytest.approx(ABORTED, abs=0.05)
    features = {name for job in jobs for name in job.features}
    assert len(features) > len(FEATURES)  # `ignore_eos` is not in FEATURES
