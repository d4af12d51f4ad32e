"""Requests to a plain and a self-speculating server, and the compared parts of their answers."""

import json
import time
from collections import Counter
from dataclasses import dataclass

import pytest

from tests.options import FIXED
from tests.server.collector import Collector
from tests.server.servers import Server

NUM_SPECULATIVE_TOKENS = 3
PROMPTS = ("Hello there", "a", "The quick brown fox jumps over the lazy dog. " * 3)
METRICS_LIMIT_S = 30
GENERATED = ("vllm:generation_tokens_total",)

SELF = (
    *("--speculative-model", "self:4"),
    *("--num-speculative-tokens", str(NUM_SPECULATIVE_TOKENS)),
    *("--additional-config", json.dumps({"layerskip": FIXED})),
)

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "name": {"type": "string", "pattern": "^[a-z]{3,8}$"},
    },
    "required": ["colour", "count", "name"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "paint", "parameters": SCHEMA}}
THINKING = {"chat_template_kwargs": {"thinking": True}}

LOGPROB_TOLERANCE = 1e-4


def nearly(tree):
    """`tree` with each float replaced by one that equals all nearby values."""
    if isinstance(tree, dict):
        return {key: nearly(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [nearly(value) for value in tree]
    return pytest.approx(tree, abs=LOGPROB_TOLERANCE) if isinstance(tree, float) else tree


@dataclass(frozen=True)
class Servers:
    """One checkpoint, served twice, and the collector of both servers' spans."""

    plain: Server
    speculating: Server
    collector: Collector


def request_options(options: dict) -> dict:
    """Greedy requests that return token ids, since 63 of this model's tokens have no text."""
    settings = {"max_tokens": 40, "temperature": 0} | options
    tokens = {"return_token_ids": True, "return_tokens_as_token_ids": True}
    return settings | {"extra_body": tokens | options.get("extra_body", {})}


def complete(server: Server, prompt: str, **options):
    return server.client.completions.create(
        model=server.model, prompt=prompt, **request_options(options)
    )


def chat(server: Server, prompt: str, **options):
    messages = [{"role": "user", "content": prompt}]
    return server.client.chat.completions.create(
        model=server.model, messages=messages, **request_options(options)
    )


def content(answer) -> dict:
    """The answer without the ids of this answer and this server."""
    return answer.model_dump(exclude={"id", "created", "system_fingerprint"})


def counted_by(server: Server, num_tokens: int, before: dict) -> Counter:
    """Increase of the server's counters, once they include the delivered tokens."""
    deadline = time.monotonic() + METRICS_LIMIT_S
    while (after := server.metrics())[GENERATED] < before[GENERATED] + num_tokens:
        assert time.monotonic() < deadline, (
            f"{num_tokens=}, {before[GENERATED]=}, {after[GENERATED]=}"
        )
        time.sleep(0.1)
    return Counter({name: value - before.get(name, 0) for name, value in after.items()})
