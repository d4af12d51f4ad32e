"""`vllm serve MODEL --speculative-model self:auto` answers as plain vLLM, and shows its choices."""

import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.engine.engines import as_prompts, generate_plainly, greedy, random_prompts
from tests.server.servers import serve

NUM_LAYERS, EXITS = 6, [1, 3, 4]
MAX_TOKENS = 60
LIMIT_S = 60
TOKEN_IDS = random_prompts([5, 17, 40, 9, 3, 20])
PREFIX = "vllm:layerskip_"


@pytest.fixture(scope="module")
def model(random_llama):
    return random_llama(num_layers=NUM_LAYERS, late_scale=0.3)


@pytest.fixture(scope="module")
def expected(model):
    return generate_plainly(model, as_prompts(TOKEN_IDS), greedy(MAX_TOKENS, ignore_eos=True))


@pytest.fixture(scope="module")
def server(model, expected):
    options = json.dumps({"layerskip": {"exit_layers": EXITS}})
    flags = ("--speculative-model", "self:auto", "--additional-config", options)
    with serve(model, *flags) as running:
        yield running


def complete(server, token_ids: list[int]) -> list[int]:
    completion = server.client.completions.create(
        model=server.model,
        prompt=token_ids,
        max_tokens=MAX_TOKENS,
        temperature=0,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    )
    return completion.choices[0].token_ids


def test_answers_one_by_one_and_together(server, expected):
    assert [complete(server, token_ids) for token_ids in TOKEN_IDS] == expected
    with ThreadPoolExecutor(len(TOKEN_IDS)) as executor:
        for _ in range(2):
            assert list(executor.map(lambda ids: complete(server, ids), TOKEN_IDS)) == expected
    counted = server.metrics()
    assert counted[("vllm:spec_decode_num_draft_tokens_total",)] > 0


def gauges(server) -> dict[tuple[str, str], float]:
    """Values by name and exit layer; without a label of that kind it is empty."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
    return {
        (sample.name.removeprefix(PREFIX), sample.labels.get("exit_layer", "")): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith(PREFIX)
    }


def test_metrics_show_the_choice_and_what_each_exit_has_learnt(server):
    assert set(rates(server)) == {str(layer) for layer in EXITS}
    for token_ids in TOKEN_IDS:
        complete(server, token_ids)
    deadline = time.monotonic() + LIMIT_S
    while len(set(rates(server).values())) < len(EXITS):  # each has learnt something else
        assert time.monotonic() < deadline, rates(server)
        complete(server, TOKEN_IDS[0])
    assert all(0 < rate < 1 for rate in rates(server).values())
    shown = gauges(server)
    assert shown["exit_layer", ""] in EXITS
    assert shown["num_drafts", ""] == 0  # after the last token


def rates(server) -> dict[str, float]:
    """The gauge of each exit's acceptance."""
    return {layer: v for (name, layer), v in gauges(server).items() if name == "exit_match_rate"}
