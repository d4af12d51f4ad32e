"""`echo`: prompts come back with their completions, as from a server without `self:E`."""

import pytest

from tests.server.answers import PROMPTS, content, nearly
from tests.server.servers import Server

SEEDED = {"temperature": 0.8, "seed": 3}
"""vLLM refuses several choices of a greedy request."""


def options_of(max_tokens: int, logprobs: int | None, n: int) -> dict:
    """Without `return_token_ids`, with which vLLM leaves the prompt's text out."""
    sampling = {"temperature": 0} if n == 1 else SEEDED | {"n": n}
    options = {"echo": True, "max_tokens": max_tokens, "logprobs": logprobs}
    return sampling | options | {"extra_body": {"return_tokens_as_token_ids": True}}


def complete(server: Server, prompt, **options):
    return server.client.completions.create(model=server.model, prompt=prompt, **options)


echoes = [(0, None, 1), (0, 2, 1), (1, 2, 1), (24, None, 1), (24, 2, 1), (24, None, 2)]
"""(max_tokens, logprobs, n)"""


@pytest.mark.parametrize(("max_tokens", "logprobs", "n"), [*echoes, (24, 2, 2)])
def test_prompts_are_echoed(servers, max_tokens, logprobs, n):
    """Two prompts in one request, so that their choices share batches."""
    options = options_of(max_tokens, logprobs, n)
    prompts = list(PROMPTS[::2])
    expected = content(complete(servers.plain, prompts, **options))
    texts = [choice["text"] for choice in expected["choices"]]
    for prompt, text in zip([p for p in prompts for _ in range(n)], texts, strict=True):
        assert text.startswith(prompt)
        assert max_tokens < 24 or len(text) > len(prompt)
    assert content(complete(servers.speculating, prompts, **options)) == nearly(expected)


def streamed(server: Server, prompt: str, **options) -> tuple[list[dict], dict]:
    """The joined chunks of each choice, and the usage; a server may split a stream anywhere."""
    stream_options = {"include_usage": True}
    *chunks, last = complete(server, prompt, stream=True, stream_options=stream_options, **options)
    joined: list[dict] = [{"text": ""} for _ in range(options.get("n", 1))]
    for (choice,) in (chunk.choices for chunk in chunks):
        whole = joined[choice.index]
        whole["text"] += choice.text
        assert "finish_reason" not in whole
        if choice.finish_reason:
            whole["finish_reason"] = choice.finish_reason
        for name, values in (choice.logprobs.model_dump() if choice.logprobs else {}).items():
            whole[name] = whole.get(name, []) + values
    return joined, last.usage.model_dump()


@pytest.mark.parametrize(("max_tokens", "logprobs", "n"), echoes)
def test_prompts_are_echoed_once_in_a_stream(servers, max_tokens, logprobs, n):
    """Not several choices with logprobs: plain vLLM ends such a stream with an error at times.

    It joins the chunks of a request's choices, and keeps the prompt's logprobs of the first chunk
    only. They are missing where one choice starts a step after another.
    """
    options = options_of(max_tokens, logprobs, n)
    for prompt in PROMPTS[::2]:
        expected, usage = streamed(servers.plain, prompt, **options)
        assert all(choice["text"].startswith(prompt) for choice in expected)
        if logprobs is not None:
            (choice,) = expected
            assert len(choice["token_logprobs"]) == len(prompt) + usage["completion_tokens"] * (
                max_tokens > 0
            )
        assert streamed(servers.speculating, prompt, **options) == (nearly(expected), usage)
