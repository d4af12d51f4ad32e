"""The split model has exactly the stock model's weights, without copies."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import runner_v2
from tests.engine.engines import (
    as_prompts,
    close,
    drafter,
    generate,
    generate_plainly,
    greedy,
    make_llm,
    make_self_llm,
    random_prompts,
    runner,
)


def parameters(llm) -> dict[str, torch.Tensor]:
    return dict(runner(llm).get_model().named_parameters(remove_duplicate=False))


AUTO = {"additional_config": {"layerskip": {"exit_layers": [1, 3, 4]}}, "spec_model": "self:auto"}


@pytest.mark.parametrize("flags", [{}, AUTO], ids=["self:E", "self:auto"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied-head", "tied-head"])
def test_no_parameter_exists_twice(random_llama, tied, flags):
    model = random_llama(tied=tied)
    plain, llm = make_llm(model), make_llm(model, **({"spec_model": "self:2"} | flags))
    stock, split = parameters(plain), parameters(llm)
    assert split.keys() == stock.keys()
    assert len({p.data_ptr() for p in split.values()}) == len(
        {p.data_ptr() for p in stock.values()}
    )
    assert sum(p.nbytes for p in split.values()) == sum(p.nbytes for p in stock.values())
    for name, parameter in stock.items():
        assert torch.equal(parameter, split[name]), name
    draft = drafter(runner(llm)).model
    assert draft is runner(llm).get_model()
    close(plain)
    close(llm)


def test_layers_of_both_segments_are_the_targets_own(random_llama):
    llm = make_self_llm(random_llama(), 2, 3)
    model = runner(llm).get_model()
    layers = list(model.early_layers._layers) + list(model.remaining_layers._layers)
    close(llm)
    assert model.early_layers._decoder[0] is model.model
    assert model.remaining_layers._norm[0] is model.model.norm
    assert len(model.early_layers._layers) == 2
    assert all(a is b for a, b in zip(layers, model.model.layers, strict=True))


def test_layers_of_all_segments_are_the_targets_own(random_llama):
    llm = make_llm(random_llama(), **AUTO)
    model = runner(llm).get_model()
    segments = [model.early_layers, *model.layers_between, model.remaining_layers]
    close(llm)
    assert [len(segment._layers) for segment in segments] == [1, 2, 1, 2]
    layers = [layer for segment in segments for layer in segment._layers]
    assert all(a is b for a, b in zip(layers, model.model.layers, strict=True))


def test_speculation_leaves_the_kv_cache_size_unchanged(random_llama):
    plain, llm = make_llm(random_llama()), make_self_llm(random_llama(), 2, 3)
    blocks = [runner(x).kv_cache_config.num_blocks for x in (plain, llm)]
    close(plain)
    close(llm)
    assert blocks[0] == blocks[1] > 0


def test_a_sharded_checkpoint_loads(random_llama, tmp_path):
    whole = random_llama(late_scale=0.3)
    prompts = as_prompts(random_prompts([9, 30]))
    expected = generate_plainly(whole, prompts, greedy(20))

    import shutil

    sharded = tmp_path / "sharded"
    shutil.copytree(whole, sharded)
    weights = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    shards = {f"model-0000{i + 1}-of-00003.safetensors": list(weights)[i::3] for i in range(3)}
    for file_name, names in shards.items():
        save_file({name: weights[name] for name in names}, sharded / file_name, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: f for f, names in shards.items() for n in names}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))

    llm = make_self_llm(str(sharded), 2, 3)
    assert generate(llm, prompts, greedy(20)) == expected
    close(llm)


def test_the_exit_layer_is_part_of_the_compile_cache_key(random_llama):
    from vllm.engine.arg_utils import EngineArgs

    def key(**flags) -> str:
        return (
            EngineArgs(random_llama(), max_model_len=64, **flags)
            .create_engine_config()
            .compute_hash()
        )

    assert key(spec_model="self:2") == key(spec_model="self:2")
    assert len({key(), key(spec_model="self:2"), key(spec_model="self:3")}) == 3


def test_every_exit_is_part_of_the_compile_cache_key(random_llama):
    from vllm.engine.arg_utils import EngineArgs

    def key(*exit_layers) -> str:
        options = {"layerskip": {"exit_layers": exit_layers}}
        args = EngineArgs(
            random_llama(), max_model_len=64, spec_model="self:auto", additional_config=options
        )
        return args.create_engine_config().speculative_config.compute_hash()

    assert key(1, 3, 4) == key(4, 3, 1)
    assert len({key(1, 3, 4), key(1, 3, 5), key(3), key(2, 3, 4)}) == 4


def test_without_self_speculation_the_engine_is_stock_vllm(random_llama):
    from vllm.model_executor.models.llama import LlamaForCausalLM

    if runner_v2.is_chosen():
        from vllm.v1.worker.cpu.model_runner import CPUModelRunner
    else:
        from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    plain = make_llm(random_llama())
    assert type(runner(plain)) is CPUModelRunner
    assert type(runner(plain).get_model()) is LlamaForCausalLM
    close(plain)
