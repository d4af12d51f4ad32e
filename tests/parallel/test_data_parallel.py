"""Two data-parallel engines behind one server say what one process says."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.parallel.jobs import MAX_TOKENS
from tests.server.servers import serve

ACCEPTED = ("vllm:spec_decode_num_accepted_tokens_total",)


@pytest.fixture(scope="module")
def server(model):
    flags = ("--speculative-model", "self:3", "--data-parallel-size", "2")
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


def test_one_engine_decodes_while_the_other_idles(server, token_prompts, plain_token_ids):
    before = server.metrics()[ACCEPTED]
    assert complete(server, token_prompts[0]) == plain_token_ids[0]
    assert server.metrics()[ACCEPTED] > before


def test_both_engines_decode(server, token_prompts, plain_token_ids):
    with ThreadPoolExecutor(len(token_prompts)) as executor:
        said = executor.map(lambda prompt: complete(server, prompt), token_prompts)
        assert list(said) == plain_token_ids
