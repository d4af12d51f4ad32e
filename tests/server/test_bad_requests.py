"""If a plain server survives a request, a speculating one neither crashes nor answers with 500."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import NamedTuple

import httpx
import hypothesis.strategies as st
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from layerskip_vllm.measure.server import Server
from tests.fuzz import JSON
from tests.options import FIXED
from tests.server.servers import serve

pytestmark = pytest.mark.slow

TIMEOUT_S = 120
CRASHED = 599
"""Status of a connection that ended without an answer."""


class Servers(NamedTuple):
    plain: Server
    speculating: Server


@pytest.fixture(scope="module")
def servers(random_llama):
    model = random_llama(num_layers=6, late_scale=0.3)
    draft = (
        *("--speculative-model", "self:4"),
        *("--num-speculative-tokens", "3"),
        *("--additional-config", json.dumps({"layerskip": FIXED})),
    )
    with ExitStack() as stack:
        with ThreadPoolExecutor() as executor:
            starting = [serve(model), serve(model, *draft)]
            running = list(executor.map(stack.enter_context, starting))
        yield Servers(*running)


@pytest.fixture
def both_alive(servers):
    """Check afterwards that each server still serves."""
    yield
    for server in servers:
        assert httpx.get(f"{server.url}/health", timeout=TIMEOUT_S).status_code == 200
        server.client.completions.create(model=server.model, prompt="a", max_tokens=2)


def statuses_of(servers: Servers, send) -> tuple[int, int]:
    """Both servers' status for one request, sent at the same time."""

    def status(server: Server) -> int:
        try:
            return send(server)
        except Exception as error:  # schemathesis and httpx have different exceptions
            if "imeout" in type(error).__name__:
                raise
            return CRASHED

    with ThreadPoolExecutor(2) as executor:
        plain, ours = executor.map(status, servers)
    return plain, ours


def examples(number: int):
    return settings(
        max_examples=number,
        deadline=None,
        database=None,
        derandomize=True,  # the same requests in each run
        suppress_health_check=list(HealthCheck),
    )


NUMBERS = st.sampled_from([-(2**63), -1, 0, 1, 2, 5, 2**31, 2**63 - 1, 2**64])
REALS = st.sampled_from([-1e30, -2.1, -2.0, 0.0, 1e-9, 0.5, 1.0, 2.0, 2.1, 1e30])
TOKEN_IDS = st.lists(NUMBERS | st.integers(0, 330), max_size=4)
TEXTS = st.text(max_size=12)
FIELDS = {
    "max_tokens": st.integers(-1, 40),
    "n": st.integers(-1, 4),
    "temperature": REALS,
    "top_p": REALS,
    "top_k": NUMBERS,
    "min_p": REALS,
    "frequency_penalty": REALS,
    "presence_penalty": REALS,
    "repetition_penalty": REALS,
    "length_penalty": REALS,
    "seed": NUMBERS,
    "logprobs": st.integers(-2, 30),
    "prompt_logprobs": st.integers(-2, 30),
    "logprob_token_ids": TOKEN_IDS,
    "logit_bias": st.dictionaries(st.integers(-1, 330).map(str) | TEXTS, REALS, max_size=4),
    "stop": TEXTS | st.lists(TEXTS, max_size=5),
    "stop_token_ids": TOKEN_IDS,
    "allowed_token_ids": TOKEN_IDS,
    "bad_words": st.lists(TEXTS, max_size=4),
    "min_tokens": st.integers(-1, 50),
    "echo": st.booleans(),
    "stream": st.booleans(),
    "ignore_eos": st.booleans(),
    "skip_special_tokens": st.booleans(),
    "use_beam_search": st.booleans(),
    "truncate_prompt_tokens": NUMBERS,
    "priority": NUMBERS,
    "structured_outputs": st.fixed_dictionaries(
        {},
        optional={
            "regex": st.sampled_from(["[a-c]{2}", "(", "", "a" * 50]),
            "choice": st.lists(TEXTS, max_size=3),
            "json": JSON,
        },
    ),
    "vllm_xargs": st.dictionaries(
        st.sampled_from(["layerskip", "num_speculative_tokens", "x"]), JSON, max_size=2
    ),
    "cache_salt": TEXTS,
}
PROMPTS = TEXTS | TOKEN_IDS | st.lists(TEXTS, max_size=3) | st.lists(TOKEN_IDS, max_size=2)


@st.composite
def bodies(draw) -> dict:
    """A request with odd values in a few fields, sometimes of a wrong type."""
    names = draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=4, unique=True))
    body = {name: draw(FIELDS[name]) for name in names}
    if draw(st.integers(0, 4)) == 0:
        body[draw(st.sampled_from(sorted(FIELDS)))] = draw(JSON)
    return {"max_tokens": 8, "prompt": draw(PROMPTS)} | body


def test_odd_completion_requests(servers, both_alive):
    seen: Counter[int] = Counter()

    @examples(400)
    @given(bodies())
    def send(body):
        content = json.dumps(body).encode()

        def post(server: Server) -> int:
            return httpx.post(
                f"{server.base_url}/completions",
                content=content,
                headers={"Content-Type": "application/json"},
                timeout=TIMEOUT_S,
            ).status_code

        plain, ours = statuses_of(servers, post)
        seen[ours] += 1
        assert ours < 500 or plain >= 500, (plain, ours, body)

    send()
    assert seen[200] > 20
    assert seen[400] > 20


def test_requests_that_the_openapi_schema_allows(servers, both_alive):
    schema = schemathesis.openapi.from_url(f"{servers.speculating.url}/openapi.json")

    @examples(400)
    @given(case=schema.as_strategy())
    def send(case):
        def call(server: Server) -> int:
            return case.call(base_url=server.url, timeout=TIMEOUT_S).status_code

        plain, ours = statuses_of(servers, call)
        assert ours < 500 or plain >= 500, (plain, ours, case.as_curl_command())

    send()
