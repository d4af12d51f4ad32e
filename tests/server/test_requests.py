"""Request options over HTTP, thoughts and tools work as on a server without `self:E`."""

import json

import jsonschema
import openai
import pytest

from tests.models import byte_tokenizer
from tests.server.answers import (
    NUM_SPECULATIVE_TOKENS,
    PROMPTS,
    SCHEMA,
    THINKING,
    TOOL,
    chat,
    complete,
    content,
    counted_by,
)
from tests.server.servers import Server

LETTERS = byte_tokenizer().convert_tokens_to_ids(list("abcdefghijklmnopqrstuvwxyz"))
"""Each is a whole character, so that a stream does not hold text back."""


def without_tool_ids(answer) -> dict:
    """The answer without the ids of this answer, this server and its calls."""
    answer = content(answer)
    for choice in answer["choices"]:
        for call in choice["message"]["tool_calls"] or ():
            del call["id"]
    return answer


@pytest.mark.parametrize(
    ("xargs", "max_drafts"),
    [
        ({"layerskip": False}, 0),
        ({"layerskip": True}, NUM_SPECULATIVE_TOKENS),
        ({"num_speculative_tokens": 0}, 0),
        ({"num_speculative_tokens": 2}, 2),
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("ask", [complete, chat])
def test_a_request_limits_its_drafts(servers, ask, xargs, max_drafts):
    options = {"extra_body": {"vllm_xargs": xargs}}
    expected = content(ask(servers.plain, PROMPTS[0], **options))
    before = servers.speculating.metrics()
    answer = ask(servers.speculating, PROMPTS[0], **options)
    assert content(answer) == expected
    counted = counted_by(servers.speculating, answer.usage.completion_tokens, before)
    num_drafts = counted["vllm:spec_decode_num_drafts_total",]
    assert (num_drafts > 0) == (max_drafts > 0)
    # The last cycles are shorter: no draft follows the last token.
    most = max_drafts * num_drafts
    num_drafted = counted["vllm:spec_decode_num_draft_tokens_total",]
    assert most - sum(range(max_drafts)) <= num_drafted <= most


@pytest.mark.parametrize(
    ("xargs", "message"),
    [
        ({"layerskip": "no"}, "layerskip='no' must be true or false; leave it out"),
        ({"layerskip": 2}, "layerskip=2 must be true or false"),
        (
            {"num_speculative_tokens": 4},
            r"num_speculative_tokens=4 must be a whole number in \[0, 3\]; leave it out for 3",
        ),
        ({"num_speculative_tokens": 1.5}, r"num_speculative_tokens=1.5 must be"),
        ({"num_speculative_tokens": [1]}, r"num_speculative_tokens=\[1\] must be"),
    ],
    ids=str,
)
@pytest.mark.parametrize("ask", [complete, chat])
def test_a_bad_option_of_a_request_is_named(servers, ask, xargs, message):
    options = {"extra_body": {"vllm_xargs": xargs}}
    with pytest.raises(openai.BadRequestError, match=message):
        ask(servers.speculating, PROMPTS[0], **options)
    # By then vLLM has already started the stream.
    with pytest.raises(openai.APIError, match=message):
        list(ask(servers.speculating, PROMPTS[0], stream=True, **options))
    assert ask(servers.plain, PROMPTS[0], **options).choices


def test_beam_search_finds_the_same_beams(servers):
    options = {"n": 2, "max_tokens": 12, "extra_body": {"use_beam_search": True}}
    for prompt in PROMPTS:
        expected = content(complete(servers.plain, prompt, **options))
        first, second = expected["choices"]
        assert first["token_ids"] != second["token_ids"]
        assert content(complete(servers.speculating, prompt, **options)) == expected


def test_best_of_does_nothing_in_this_vllm(servers):
    greedy = content(complete(servers.plain, PROMPTS[0]))
    for server in (servers.plain, servers.speculating):
        answer = complete(server, PROMPTS[0], extra_body={"best_of": 3})
        assert content(answer) == greedy


THOUGHT = THINKING | {"thinking_token_budget": 12, "allowed_token_ids": LETTERS}
"""Twelve letters, then a forced end of the thought."""


def test_a_thought_and_an_answer(servers):
    for prompt in PROMPTS:
        expected = content(chat(servers.plain, prompt, extra_body=THOUGHT))
        message = expected["choices"][0]["message"]
        assert len(message["reasoning"]) == 12
        assert len(message["content"]) == 40 - 13
        assert content(chat(servers.speculating, prompt, extra_body=THOUGHT)) == expected


def streamed(server: Server, prompt: str, **options) -> dict[str, str]:
    """The joined chunks of a stream, by field."""
    chunks = chat(server, prompt, stream=True, **options)
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    return {
        field: "".join(getattr(delta, field, None) or "" for delta in deltas)
        for field in ("reasoning", "content")
    }


def test_a_stream_separates_thought_and_answer(servers):
    """Under speculation one chunk may end the thought and begin the answer."""
    for prompt in PROMPTS:
        message = chat(servers.plain, prompt, extra_body=THOUGHT).choices[0].message
        expected = {"reasoning": message.reasoning, "content": message.content}
        assert streamed(servers.plain, prompt, extra_body=THOUGHT) == expected
        assert streamed(servers.speculating, prompt, extra_body=THOUGHT) == expected


@pytest.mark.parametrize(
    "tool_choice",
    ["required", {"type": "function", "function": {"name": "paint"}}],
    ids=["required", "named"],
)
def test_a_tool_is_called_after_a_thought(servers, tool_choice):
    """The call's grammar applies from the end of the thought on, also within drafts."""
    options = {
        "tools": [TOOL],
        "tool_choice": tool_choice,
        "parallel_tool_calls": False,
        "max_tokens": 120,
        "extra_body": THINKING | {"thinking_token_budget": 8, "min_tokens": 9},
    }
    for prompt in PROMPTS:
        expected = without_tool_ids(chat(servers.plain, prompt, **options))
        (call,) = expected["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] == "paint"
        jsonschema.validate(json.loads(call["function"]["arguments"]), SCHEMA)
        assert without_tool_ids(chat(servers.speculating, prompt, **options)) == expected
