"""Early exit equals transformers' model cut to its first layers, in output and memory."""

import json
from pathlib import Path

import pytest
import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.model_loader import default_loader
from vllm.v1.worker.cpu_model_runner import CPUModelRunner

from tests.engine.cut_models import MAX_TOKENS, PROMPTS, early_exit, transformers_outputs
from tests.engine.engines import (
    as_prompts,
    close,
    counts,
    generate,
    greedy,
    make_llm,
    random_prompts,
    runner,
)
from tests.models import first_layers

NUM_LAYERS = 6


def create_engine_config(model: str, **flags):
    return EngineArgs(model, max_model_len=64, **flags).create_engine_config()


def generated(llm, prompts=PROMPTS) -> list[list[int]]:
    return generate(llm, as_prompts(prompts), greedy(MAX_TOKENS))


@pytest.fixture(scope="module")
def model(random_llama):
    return random_llama(num_layers=NUM_LAYERS)


@pytest.fixture(scope="module")
def two_layers(model):
    """An engine that serves two of the six layers."""
    llm = make_llm(model, **early_exit(2))
    yield llm
    close(llm)


@pytest.fixture(scope="module")
def all_layers(model):
    """A stock engine."""
    llm = make_llm(model)
    yield llm
    close(llm)


@pytest.mark.parametrize("num_layers", [1, 2, NUM_LAYERS])
@pytest.mark.parametrize("tied", [False, True], ids=["untied-head", "tied-head"])
def test_output_equals_the_cut_models(random_llama, tied, num_layers):
    model = random_llama(num_layers=NUM_LAYERS, tied=tied)
    llm = make_llm(model, **early_exit(num_layers))
    outputs = generated(llm)
    close(llm)
    assert outputs == transformers_outputs(model, num_layers)
    assert (outputs == transformers_outputs(model, NUM_LAYERS)) == (num_layers == NUM_LAYERS)


def parameters(llm) -> dict[str, torch.Tensor]:
    return dict(runner(llm).get_model().named_parameters())


def is_in_a_later_layer(name: str) -> bool:
    return name.startswith(tuple(f"model.layers.{n}." for n in range(2, NUM_LAYERS)))


def test_only_the_first_layers_have_parameters(all_layers, two_layers):
    expected = {n: p for n, p in parameters(all_layers).items() if not is_in_a_later_layer(n)}
    assert len(expected) < len(parameters(all_layers))
    assert parameters(two_layers).keys() == expected.keys()
    for name, parameter in parameters(two_layers).items():
        assert torch.equal(parameter, expected[name]), name


def test_only_the_first_layers_have_a_kv_cache(all_layers, two_layers):
    config = runner(two_layers).kv_cache_config
    assert [name for group in config.kv_cache_groups for name in group.layer_names] == [
        f"model.layers.{index}.self_attn.attn" for index in range(2)
    ]
    assert len(runner(two_layers).kv_caches) == 2
    # The same memory holds more blocks.
    assert config.num_blocks // 3 == runner(all_layers).kv_cache_config.num_blocks


def test_worker_and_runner_are_stock_vllm(two_layers):
    assert type(runner(two_layers)) is CPUModelRunner


def test_prefix_cache_hits_change_nothing(model, two_layers):
    (prefix,) = random_prompts([96], seed=3)
    prompts = [prefix + tail for tail in random_prompts([1, 7, 33, 40], seed=4)]
    expected = transformers_outputs(model, 2, prompts)
    assert generated(two_layers, prompts) == expected
    second = two_layers.generate(as_prompts(prompts), greedy(MAX_TOKENS), use_tqdm=False)
    assert all(output.num_cached_tokens >= 96 for output in second)
    assert [list(output.outputs[0].token_ids) for output in second] == expected


def test_chunked_prompts_change_nothing(model):
    llm = make_llm(model, max_num_batched_tokens=16, max_num_seqs=8, **early_exit(2))
    outputs = generated(llm)
    close(llm)
    assert outputs == transformers_outputs(model, 2)


def test_vllms_own_speculation_verifies_with_the_cut_model(random_llama, model):
    """A second model drafts, with all its layers."""
    draft = {"model": random_llama(num_layers=3), "num_speculative_tokens": 3}
    llm = make_llm(model, speculative_config=draft, **early_exit(2))
    before = counts(llm)
    outputs = generated(llm)
    counted = counts(llm).since(before)
    num_draft_layers = len(runner(llm).drafter.model.model.layers)
    close(llm)
    assert outputs == transformers_outputs(model, 2)
    assert counted.num_drafted > 0
    assert num_draft_layers == 3


def test_files_with_only_later_layers_are_not_read(model, tmp_path, monkeypatch):
    files_read = []
    read = default_loader.safetensors_weights_iterator

    def recording(files, *args, **kwargs):
        files_read.extend(Path(file).name for file in files)
        return read(files, *args, **kwargs)

    expected = transformers_outputs(model, 2)
    first_layers(model, NUM_LAYERS).save_pretrained(tmp_path, max_shard_size="500KB")
    for file in Path(model).glob("tokenizer*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    monkeypatch.setattr(default_loader, "safetensors_weights_iterator", recording)
    llm = make_llm(str(tmp_path), **early_exit(2))
    outputs = generated(llm)
    close(llm)
    wanted = {f for name, f in index["weight_map"].items() if not is_in_a_later_layer(name)}
    assert outputs == expected
    assert set(files_read) == wanted < set(index["weight_map"].values())


def test_the_depth_is_part_of_the_compile_cache_key(model):
    def key(**flags) -> str:
        return create_engine_config(model, **flags).compute_hash()

    assert key(**early_exit(2)) == key(**early_exit(2))
    assert len({key(), *(key(**early_exit(n)) for n in (1, 2, NUM_LAYERS))}) == 4


def test_layer_types_are_cut_too(model, tmp_path):
    for file in Path(model).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    layer_types = ["full_attention", "sliding_attention"] * (NUM_LAYERS // 2)
    (tmp_path / "config.json").write_text(
        json.dumps(config | {"layer_types": layer_types, "sliding_window": 16})
    )
    model_config = create_engine_config(str(tmp_path), **early_exit(3)).model_config
    assert model_config.hf_text_config.layer_types == layer_types[:3]
    assert model_config.get_total_num_hidden_layers() == 3
