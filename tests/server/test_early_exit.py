"""`vllm serve MODEL --early-exit N` gives the answers of transformers' model cut to N layers."""

import pytest
import torch

from tests.models import first_layers
from tests.server.servers import serve

NUM_LAYERS = 2
MAX_TOKENS = 40
PROMPTS = ("Hello there", "a", "The quick brown fox jumps over the lazy dog.")


@pytest.fixture(scope="module")
def model(random_llama):
    return random_llama(num_layers=6)


@pytest.fixture(scope="module")
def server(model):
    with serve(model, "--early-exit", str(NUM_LAYERS)) as running:
        yield running


@pytest.fixture(scope="module")
def cut_model(model):
    return first_layers(model, NUM_LAYERS)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_answers_equal_the_cut_models(server, cut_model, prompt):
    (choice,) = server.client.completions.create(
        model=server.model,
        prompt=prompt,
        max_tokens=MAX_TOKENS,
        temperature=0,
        extra_body={"return_token_ids": True, "ignore_eos": True},
    ).choices
    expected = cut_model.generate(
        torch.tensor([choice.prompt_token_ids]),
        max_new_tokens=MAX_TOKENS,
        do_sample=False,
        eos_token_id=None,
    )
    assert choice.token_ids == expected[0, len(choice.prompt_token_ids) :].tolist()


def test_the_log_gives_the_number_of_serving_layers(server):
    assert "LayerSkip: layers [0, 2) of 6 serve, without verification" in server.log.read_text()
