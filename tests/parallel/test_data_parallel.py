"""Two data-parallel engines behind one server give the output of one process."""

import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import switching
from tests.options import FIXED
from tests.parallel.jobs import MAX_TOKENS
from tests.server.servers import serve

EXIT_LAYER = "vllm:layerskip_exit_layer"
LIMIT_S = 60
ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"


SELF_3 = ("self:3", [3], FIXED, {})
SWITCHING = ("self:auto", [1, 3, 4], {"exit_layers": [1, 3, 4]}, switching.environment())
"""Each engine switches exits on its own."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(SELF_3, id="self:3"),
        pytest.param(SWITCHING, id="self:auto", marks=pytest.mark.slow),
    ],
)
def served(model, request):
    """A server, and the exits that draft there."""
    name, exits, options, variables = request.param
    flags = ("--speculative-model", name, "--additional-config", json.dumps({"layerskip": options}))
    cores = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    with serve(model, *flags, "--data-parallel-size", "2", **cores, **variables) as server:
        yield server, exits


@pytest.fixture
def server(served):
    return served[0]


def complete(server, prompt) -> list[int]:
    completion = server.client.completions.create(
        model=server.model,
        prompt=prompt,
        max_tokens=MAX_TOKENS,
        temperature=0,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )
    return completion.choices[0].token_ids


def by_engine(server, name: str) -> dict[str, float]:
    """A metric's value in each engine."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
    samples = [sample for family in families for sample in family.samples]
    return {s.labels["engine"]: s.value for s in samples if s.name == name}


def accepted_drafts(server) -> dict[str, float]:
    """Number of accepted drafts of each engine so far."""
    return by_engine(server, ACCEPTED)


def engines_that_decoded(server, before: dict[str, float]) -> int:
    return sum(count > before[engine] for engine, count in accepted_drafts(server).items())


def test_one_engine_decodes_while_the_other_idles(server, token_prompts, plain_token_ids):
    before = accepted_drafts(server)
    assert len(before) == 2
    assert complete(server, token_prompts[0]) == plain_token_ids[0]
    assert engines_that_decoded(server, before) == 1


def test_both_engines_decode(server, token_prompts, plain_token_ids):
    before = accepted_drafts(server)
    with ThreadPoolExecutor(len(token_prompts)) as executor:
        outputs = executor.map(lambda prompt: complete(server, prompt), token_prompts)
        assert list(outputs) == plain_token_ids
    assert engines_that_decoded(server, before) == 2


def test_each_engine_drafts_at_every_exit(served, token_prompts, plain_token_ids):
    server, exits = served
    seen = {engine: set() for engine in by_engine(server, EXIT_LAYER)}
    deadline = time.monotonic() + LIMIT_S
    while any(found != set(exits) for found in seen.values()):
        assert time.monotonic() < deadline, seen
        with ThreadPoolExecutor(len(token_prompts)) as executor:
            outputs = executor.map(lambda prompt: complete(server, prompt), token_prompts)
            assert list(outputs) == plain_token_ids
        for engine, layer in by_engine(server, EXIT_LAYER).items():
            seen[engine].add(int(layer))
    assert len(seen) == 2
