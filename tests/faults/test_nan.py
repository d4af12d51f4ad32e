"""With a NaN in a layer that only verifies, output equals plain decoding's."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.engine.engines import (
    OPEN,
    as_prompts,
    close,
    counts,
    generate,
    generate_plainly,
    greedy,
    make_self_llm,
    random_prompts,
)

NUM_LAYERS = 6


@pytest.fixture(autouse=True)
def close_engines_left_open():
    yield
    for llm in list(OPEN):
        close(llm)


@pytest.fixture
def model(random_llama, tmp_path):
    """A model whose last layer outputs NaN at every position, which drafts do not run."""
    path = Path(shutil.copytree(random_llama(num_layers=NUM_LAYERS), tmp_path / "model"))
    weights = load_file(path / "model.safetensors")
    weights[f"model.layers.{NUM_LAYERS - 1}.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return str(path)


def test_output_equals_plain_decoding(model):
    prompts = as_prompts(random_prompts([5, 33, 17]))
    expected = generate_plainly(model, prompts, greedy(20, ignore_eos=True))
    llm = make_self_llm(model, 3, 4)
    before = counts(llm)
    assert generate(llm, prompts, greedy(20, ignore_eos=True)) == expected
    assert counts(llm).since(before).num_drafted > 0
    # The engine still serves the next request.
    assert generate(llm, prompts, greedy(20, ignore_eos=True)) == expected
