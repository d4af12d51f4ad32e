"""Two data-parallel engines behind one server give the output of one process."""

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.options import FIXED
from tests.parallel.jobs import MAX_TOKENS
from tests.server.servers import serve

ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"


@pytest.fixture(scope="module")
def server(model):
    options = ("--additional-config", json.dumps({"layerskip": FIXED}))
    flags = ("--speculative-model", "self:3", *options, "--data-parallel-size", "2")
    with serve(model, *flags, VLLM_CPU_OMP_THREADS_BIND="0|1") as server:
        yield server


def complete(server, prompt) -> list[int]:
    completion = server.client.completions.create(
        model=server.model,
        prompt=prompt,
        max_tokens=MAX_TOKENS,
        temperature=0,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )
    return completion.choices[0].token_ids


def accepted_drafts(server) -> dict[str, float]:
    """Number of accepted drafts of each engine so far."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
    samples = [sample for family in families for sample in family.samples]
    return {s.labels["engine"]: s.value for s in samples if s.name == ACCEPTED}


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
