"""A plain and a self-speculating server give the same answers to all kinds of requests."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jsonschema
import pytest

from tests.server.answers import (
    GENERATED,
    NUM_SPECULATIVE_TOKENS,
    PROMPTS,
    SCHEMA,
    chat,
    complete,
    content,
    counted_by,
    nearly,
)
from tests.server.servers import MAX_MODEL_LEN, Server, run_vllm

ONE_TOKEN_NUCLEUS = {"temperature": 1, "top_p": 1e-6}
"""Sampling without a choice, which must give the greedy output."""


def contents(ask, server: Server, **options) -> list[dict]:
    return [content(ask(server, prompt, **options)) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def plain_greedy(servers):
    """The plain server's answers without further options."""
    return {ask: contents(ask, servers.plain) for ask in (complete, chat)}


@pytest.mark.parametrize("ask", [complete, chat])
def test_greedy_answers(servers, plain_greedy, ask):
    assert all(answer["choices"][0]["token_ids"] for answer in plain_greedy[ask])
    assert contents(ask, servers.speculating) == plain_greedy[ask]


@pytest.mark.parametrize(
    ("ask", "options"),
    [
        pytest.param(complete, {"logprobs": 3}, id="completion-logprobs"),
        pytest.param(chat, {"logprobs": True, "top_logprobs": 3}, id="chat-logprobs"),
        pytest.param(complete, {"extra_body": {"prompt_logprobs": 2}}, id="prompt-logprobs"),
        pytest.param(complete, {"echo": True, "logprobs": 1}, id="echo"),
        pytest.param(complete, {"logit_bias": {"64": 3, "101": -5}}, id="logit-bias"),
        pytest.param(
            chat,
            {"logit_bias": {"64": 3}, "extra_body": {"repetition_penalty": 1.5}},
            id="logit-bias-and-penalty",
        ),
        pytest.param(complete, {"frequency_penalty": 1.5}, id="frequency-penalty"),
        pytest.param(chat, {"presence_penalty": 1.5}, id="presence-penalty"),
        pytest.param(
            complete, {"extra_body": {"repetition_penalty": 1.5}}, id="repetition-penalty"
        ),
        pytest.param(
            complete, {"extra_body": {"allowed_token_ids": [*range(60, 90)]}}, id="allowed"
        ),
        pytest.param(
            chat, {"extra_body": {"bad_words": [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ"]}}, id="bad"
        ),
        pytest.param(complete, {"extra_body": {"min_tokens": 35}}, id="min-tokens"),
        pytest.param(
            complete, {"max_tokens": 90, "extra_body": {"ignore_eos": True}}, id="past-eos"
        ),
        pytest.param(complete, {"max_tokens": 2}, id="fewer-tokens-than-drafts"),
        pytest.param(
            complete,
            {"extra_body": {"structured_outputs": {"choice": ["apple", "apricot", "banana"]}}},
            id="choice",
        ),
        pytest.param(
            chat,
            {"extra_body": {"structured_outputs": {"regex": "[a-f]{8}-[0-9]{4}(-[x-z]{2}){3}"}}},
            id="regex",
        ),
    ],
)
def test_options_act_as_without_speculation(servers, plain_greedy, ask, options):
    expected = contents(ask, servers.plain, **options)
    assert expected != plain_greedy[ask], "the option does nothing"
    assert contents(ask, servers.speculating, **options) == nearly(expected)


@pytest.mark.parametrize(
    ("ask", "options"),
    [
        pytest.param(
            complete, {"extra_body": {"structured_outputs": {"json": SCHEMA}}}, id="completion"
        ),
        pytest.param(
            chat,
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": SCHEMA},
                }
            },
            id="chat",
        ),
    ],
)
def test_json_follows_its_schema(servers, ask, options):
    expected = contents(ask, servers.plain, max_tokens=100, **options)
    answers = contents(ask, servers.speculating, max_tokens=100, **options)
    for (choice,) in (answer["choices"] for answer in answers):
        text = choice["text"] if ask is complete else choice["message"]["content"]
        jsonschema.validate(json.loads(text), SCHEMA)
        assert choice["finish_reason"] == "stop"
    assert answers == expected


def test_min_p_acts_as_without_speculation(servers):
    options = {"temperature": 1, "seed": 5, "extra_body": {"min_p": 0.1}}
    expected = contents(complete, servers.plain, **options)
    assert expected != contents(complete, servers.plain, temperature=1, seed=5)
    assert contents(complete, servers.speculating, **options) == expected


def test_a_stop_string_among_drafts_ends_the_text(servers):
    for prompt in PROMPTS:
        text = complete(servers.plain, prompt).choices[0].text
        stops = [char for char in dict.fromkeys(text) if char.isascii()][1:3]
        assert stops
        for stop in stops:
            expected = content(complete(servers.plain, prompt, stop=[stop]))
            assert expected["choices"][0]["stop_reason"] == stop
            assert content(complete(servers.speculating, prompt, stop=[stop])) == expected


def test_an_answer_may_fill_the_context(servers):
    options = {"max_tokens": None, "extra_body": {"ignore_eos": True}}
    expected = content(chat(servers.plain, "x" * 460, **options))
    assert expected["usage"]["total_tokens"] == MAX_MODEL_LEN
    assert content(chat(servers.speculating, "x" * 460, **options)) == expected


@dataclass(frozen=True)
class Streamed:
    """The joined chunks of a stream; a server may split it anywhere."""

    text: str
    token_ids: list[int]
    finish_reason: str
    usage: dict

    @classmethod
    def of(cls, ask, server: Server, prompt: str) -> "Streamed":
        stream = ask(server, prompt, stream=True, stream_options={"include_usage": True})
        *chunks, last = stream
        choices = [choice for chunk in chunks for choice in chunk.choices]
        texts = [c.text if ask is complete else c.delta.content for c in choices]
        return cls(
            text="".join(text or "" for text in texts),
            token_ids=[i for choice in choices for i in getattr(choice, "token_ids", None) or ()],
            finish_reason=choices[-1].finish_reason,
            usage=last.usage.model_dump(),
        )


@pytest.mark.parametrize("ask", [complete, chat])
def test_streams(servers, ask):
    for prompt in PROMPTS:
        expected = Streamed.of(ask, servers.plain, prompt)
        assert len(expected.token_ids) == expected.usage["completion_tokens"] > 0
        assert Streamed.of(ask, servers.speculating, prompt) == expected


def test_twelve_clients_at_once(servers):
    def answers(server: Server) -> list[dict]:
        def ask(index: int) -> dict:
            prompt = f"Client {index} asks: " + "why? " * (3 * index)
            options = {"max_tokens": 10 + 9 * index, "extra_body": {"ignore_eos": index % 2 == 0}}
            return content((complete, chat)[index % 2](server, prompt, **options))

        with ThreadPoolExecutor(12) as clients:
            return list(clients.map(ask, range(12)))

    assert answers(servers.speculating) == answers(servers.plain)


def test_metrics_count_drafts_and_delivered_tokens(servers):
    before = servers.speculating.metrics()
    answers = [complete(servers.speculating, prompt) for prompt in PROMPTS]
    num_tokens = sum(answer.usage.completion_tokens for answer in answers)
    counted = counted_by(servers.speculating, num_tokens, before)

    num_drafts, num_drafted, num_accepted = (
        counted[f"vllm:spec_decode_num_{name}_total",]
        for name in ("drafts", "draft_tokens", "accepted_tokens")
    )
    per_position = [
        counted["vllm:spec_decode_num_accepted_tokens_per_pos_total", str(position)]
        for position in range(NUM_SPECULATIVE_TOKENS)
    ]
    assert counted[GENERATED] == num_tokens
    # The last cycles are shorter: no draft follows a request's last token.
    most = NUM_SPECULATIVE_TOKENS * num_drafts
    cut = len(PROMPTS) * sum(range(NUM_SPECULATIVE_TOKENS))
    assert 0 < num_accepted < num_drafted
    assert most - cut <= num_drafted <= most
    assert sum(per_position) == num_accepted
    assert per_position == sorted(per_position, reverse=True)
    # A prompt's step delivers one token, a draft's step the accepted tokens and one more. Only the
    # last step's accepted tokens can lie beyond the request's end. The last token may come from a
    # step without drafts.
    num_sampled = len(PROMPTS) + num_drafts + num_accepted
    assert -len(PROMPTS) <= num_sampled - num_tokens <= len(PROMPTS) * NUM_SPECULATIVE_TOKENS


def test_without_speculation_no_drafts_are_counted(servers):
    before = servers.plain.metrics()
    num_tokens = complete(servers.plain, PROMPTS[0]).usage.completion_tokens
    counted = counted_by(servers.plain, num_tokens, before)
    assert counted[GENERATED] == num_tokens
    assert not any(
        value for (name, *_), value in servers.plain.metrics().items() if "spec_decode" in name
    )


@pytest.mark.slow
def test_bench_serve_reports_acceptance(servers, tmp_path):
    server = servers.speculating
    code, screen = run_vllm(
        *("bench", "serve", "--base-url", server.url, "--model", server.model),
        *("--dataset-name", "random", "--num-prompts", "8", "--temperature", "0"),
        *("--random-input-len", "16", "--random-output-len", "24", "--ignore-eos"),
        *("--save-result", "--result-dir", str(tmp_path), "--result-filename", "results.json"),
        timeout_s=480,
    )
    assert code == 0, screen[-6000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["completed"], results["failed"]) == (8, 0)
    assert results["total_output_tokens"] == 8 * 24
    assert 0 < results["spec_decode_accepted_tokens"] < results["spec_decode_draft_tokens"]


needs_top_k_kernel = pytest.mark.runner_v1
"""V2 filters top-k and top-p by a Triton kernel that the interpreter cannot run, without `self:E`
either."""


@needs_top_k_kernel
@pytest.mark.parametrize("ask", [complete, chat])
def test_three_choices_from_a_nucleus_of_one_token_are_the_greedy_output(servers, ask):
    for prompt in PROMPTS:
        (greedy,) = ask(servers.plain, prompt).choices
        for server in (servers.plain, servers.speculating):
            answer = ask(server, prompt, n=3, **ONE_TOKEN_NUCLEUS)
            assert [choice.token_ids for choice in answer.choices] == [greedy.token_ids] * 3


def test_sampled_neighbours_leave_greedy_requests_unchanged(servers):
    """Greedy and sampled requests share batches."""

    def ask(index: int) -> list[int]:
        temperature = 0.8 * (index % 2)
        return (
            complete(servers.speculating, f"Client {index}", temperature=temperature)
            .choices[0]
            .token_ids
        )

    with ThreadPoolExecutor(12) as clients:
        together = list(clients.map(ask, range(12)))
    for index in range(0, 12, 2):
        assert together[index] == complete(servers.plain, f"Client {index}").choices[0].token_ids


@needs_top_k_kernel
def test_sampling_from_the_top_token_is_the_greedy_output(servers):
    options = {"temperature": 1, "extra_body": {"top_k": 1}}
    for prompt in PROMPTS:
        (greedy,) = complete(servers.plain, prompt).choices
        (sampled,) = complete(servers.speculating, prompt, **options).choices
        assert sampled.token_ids == greedy.token_ids
