"""Streamed tool calls: under drafts a chunk brings several tokens, and the call is the same.

Chunks cannot be compared one by one. vLLM sends a chunk per step, and a step with accepted drafts
has several tokens; a server under load joins chunks too, with or without drafts. So a stream is
read as the message that its client holds after n tokens. Two streams are compared for each n after
which both have a chunk's end, and the last n is one of these.
"""

import json
from copy import deepcopy
from dataclasses import dataclass

import jsonschema
import pytest

from tests.models import byte_tokenizer
from tests.server.answers import PROMPTS, SCHEMA, THINKING, TOOL, chat, counted_by
from tests.server.servers import Server

ASCII = byte_tokenizer().encode("".join(map(chr, range(ord(" "), ord("~") + 1))))
"""Whole characters: of others, vLLM loses the last one of a thought, in plain streams too."""

TEXT_ENDS, THOUGHT_ENDS = 256, 258
"""Tokens of `byte_tokenizer`, and of the servers' after it."""
NAMED = {"type": "function", "function": {"name": "paint"}}


def extend(message: dict, delta) -> None:
    """Add a delta to the message as a client does, and check that it may come."""
    for field in ("reasoning", "content"):
        message[field] += getattr(delta, field, None) or ""
    for part in delta.tool_calls or ():
        function, calls = part.function, message["calls"]
        if part.index == len(calls):
            assert part.id
            assert (part.type, function.name) == ("function", "paint")
            calls.append("")
        else:
            assert part.index == len(calls) - 1
            assert (part.id, function.name) == (None, None)
        calls[-1] += function.arguments or ""


@dataclass(frozen=True)
class Stream:
    """What the client of a streamed chat holds, and how the stream ended."""

    after: dict[int, dict]
    """By number of tokens, wherever a chunk ends: thought, text and arguments of calls so far."""
    finish_reason: str
    usage: dict

    @classmethod
    def of(cls, server: Server, prompt: str, **options) -> "Stream":
        stream_options = {"include_usage": True}
        *chunks, last = chat(server, prompt, stream=True, stream_options=stream_options, **options)
        message: dict = {"reasoning": "", "content": "", "calls": []}
        num_tokens, after, finish_reason = 0, {}, None
        for (choice,) in (chunk.choices for chunk in chunks):
            assert finish_reason is None
            extend(message, choice.delta)
            num_tokens += len(getattr(choice, "token_ids", None) or ())
            after[num_tokens] = deepcopy(message)
            finish_reason = choice.finish_reason
        return cls(after, finish_reason, last.usage.model_dump())

    @property
    def message(self) -> dict:
        """The whole message."""
        return self.after[self.usage["completion_tokens"]]

    def assert_same(self, plain: "Stream") -> None:
        numbers = self.after.keys() & plain.after.keys()
        assert {n: self.after[n] for n in numbers} == {n: plain.after[n] for n in numbers}
        assert self.message == plain.message
        assert (self.finish_reason, self.usage) == (plain.finish_reason, plain.usage)


def both(servers, **options) -> list[tuple[Stream, Stream]]:
    """Streams of the plain server and of the other, which accepts drafts unless told not to."""
    before = servers.speculating.metrics()
    streams = [
        tuple(
            Stream.of(server, prompt, **options) for server in (servers.plain, servers.speculating)
        )
        for prompt in PROMPTS
    ]
    num_tokens = sum(stream.usage["completion_tokens"] for _, stream in streams)
    counted = counted_by(servers.speculating, num_tokens, before)
    assert counted["vllm:spec_decode_num_accepted_tokens_total",] > 0
    return streams


WHOLE = 150
"""More tokens than an answer has: its grammar ends it."""


@pytest.mark.parametrize(
    ("tool_choice", "max_tokens", "is_called"),
    [
        pytest.param("required", WHOLE, True, id="required"),
        pytest.param("required", 60, True, id="required-cut-off-in-arguments"),
        pytest.param("required", 20, False, id="required-cut-off-in-name"),
        pytest.param(NAMED, WHOLE, True, id="named"),
        pytest.param(NAMED, 35, True, id="named-cut-off-in-arguments"),
    ],
)
def test_a_forced_call_after_a_thought(servers, tool_choice, max_tokens, is_called):
    """Each part depends on the tokens so far alone, however they are joined to chunks."""
    thought = {"thinking_token_budget": 8, "min_tokens": 9}
    allowed = {"allowed_token_ids": [*ASCII, TEXT_ENDS, THOUGHT_ENDS]}
    streams = both(
        servers,
        tools=[TOOL],
        tool_choice=tool_choice,
        parallel_tool_calls=False,
        max_tokens=max_tokens,
        extra_body=THINKING | thought | allowed,
    )
    for plain, stream in streams:
        stream.assert_same(plain)
        assert len(plain.message["reasoning"]) == 8
        assert plain.message["content"] == ""
        assert len(plain.message["calls"]) == is_called
        if max_tokens == WHOLE:
            jsonschema.validate(json.loads(plain.message["calls"][0]), SCHEMA)
        else:
            assert plain.finish_reason == "length"


CALL = r"paint\(colour='(red|green|blue)', count=[1-9][0-9]?, name='[a-z]{20}'\)"
AFTER_COLOUR, IN_FIRST_NAME, IN_SECOND_NAME = 26, 50, 112


def chosen_calls(max_tokens: int) -> dict:
    """Options of a chat in which the model chooses two calls, since its grammar has no other."""
    return {
        "tools": [TOOL],
        "tool_choice": "auto",
        "max_tokens": max_tokens,
        "extra_body": {"structured_outputs": {"regex": rf"\[{CALL}, {CALL}\]"}},
    }


@pytest.fixture(scope="module")
def chosen(servers):
    """Streams of two whole calls."""
    return both(servers, **chosen_calls(WHOLE))


def test_two_chosen_calls(chosen):
    for plain, stream in chosen:
        assert stream.message == plain.message
        assert (stream.finish_reason, stream.usage) == ("tool_calls", plain.usage)
        assert plain.message["content"] == ""
        for arguments in plain.message["calls"]:
            assert json.loads(arguments).keys() == {"colour", "count", "name"}
        assert len(plain.message["calls"]) == 2


@pytest.mark.parametrize(
    ("max_tokens", "num_calls"), [(AFTER_COLOUR, 1), (IN_FIRST_NAME, 1), (IN_SECOND_NAME, 2)]
)
def test_chosen_calls_that_are_cut_off(servers, chosen, max_tokens, num_calls):
    """Between two arguments the end depends on the chunks, with and without drafts.

    vLLM's parser tries to read a call at a chunk's end. It can where the text becomes Python once
    its quotes and brackets are closed. If it cannot at the last chunk's end, the client never gets
    what came after the last end at which it could.
    """
    streams = both(servers, **chosen_calls(max_tokens))
    for (plain, stream), (whole, _) in zip(streams, chosen, strict=True):
        assert (plain.finish_reason, stream.finish_reason) == ("length", "length")
        assert stream.usage == plain.usage
        for one in (plain.message, stream.message):
            assert is_beginning(one, whole.message)
        if max_tokens != AFTER_COLOUR:
            assert stream.message == plain.message
            assert len(plain.message["calls"]) == num_calls
            assert '"name": "' in plain.message["calls"][-1]


def is_beginning(message: dict, whole: dict) -> bool:
    """Whether the whole message may still come of this one."""
    calls, whole_calls = message["calls"], whole["calls"]
    return (
        message["content"] == whole["content"] == ""
        and calls[:-1] == whole_calls[: len(calls[:-1])]
        and all(whole_calls[len(calls) - 1].startswith(last) for last in calls[-1:])
    )
