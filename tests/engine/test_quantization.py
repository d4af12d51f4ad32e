"""With quantized weights and activations, output equals plain decoding of the same checkpoint.

test_scenarios.py tests the formats with integer weights and activations.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from vllm.engine.arg_utils import EngineArgs

from layerskip_vllm.demo.models import PYTHON_10M
from layerskip_vllm.spec_decode.draft_vocabulary import DraftHead
from layerskip_vllm.vllm_config.unsupported import refused_quantization
from tests.engine.engines import as_prompts, assert_speculated, both, greedy, random_prompts
from tests.engine.features import IN_ALL_SCENARIOS, IN_ONE_SCENARIO
from tests.quantize import CONFIGS, quantized

TRAINED = [
    # vLLM multiplies 4-bit weights on a CPU only in 16 bits, where the batch shape can change the
    # rounding. A trained model's choices are clear enough to tolerate that.
    ("w4a16", "float16"),
    pytest.param("w4a16-asymmetric", "float16", marks=pytest.mark.slow),
    pytest.param("gptq", "float16", marks=pytest.mark.slow),
    ("awq", "float16"),
    ("w8a8-fp8", "float32"),
    pytest.param("auto-round", "float16", marks=pytest.mark.slow),
    # vLLM supports these only in 16 bits.
    pytest.param("quark-w8a8", "bfloat16", marks=pytest.mark.slow),
    pytest.param("quark-w8a8-fp8", "bfloat16", marks=pytest.mark.slow),
    pytest.param("quark-w4a16", "float16", marks=pytest.mark.slow),
    pytest.param("modelopt-fp8", "bfloat16", marks=pytest.mark.slow),
]


def test_every_format_is_tested():
    of_integers = {f.quantization for f in (IN_ALL_SCENARIOS | IN_ONE_SCENARIO).values()} - {None}
    assert {*of_integers, *(getattr(case, "values", case)[0] for case in TRAINED)} == {*CONFIGS}


@pytest.mark.slow
def test_integers_with_compiled_segments(random_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    model = quantized(random_llama(num_layers=3, late_scale=0.3), tmp_path, "w8a8")
    prompts = as_prompts(random_prompts([5, 33, 9]))
    expected, actual, counted = both(model, prompts, greedy(40), 2, enforce_eager=False)
    assert actual == expected
    assert_speculated(counted)


@pytest.mark.parametrize(("name", "dtype"), TRAINED)
def test_a_trained_checkpoint(tmp_path, name, dtype):
    assert_equal_on_code(quantized(str(PYTHON_10M), tmp_path, name), dtype=dtype)


@pytest.mark.parametrize(("name", "dtype"), [("awq", "float16"), ("w8a8-fp8", "float32")])
def test_a_trained_checkpoint_whose_exit_changes_every_step(tmp_path, name, dtype):
    model = quantized(str(PYTHON_10M), tmp_path, name)
    assert_equal_on_code(model, exit_layer=[2, 3, 4], dtype=dtype)


def test_weights_rounded_on_load():
    assert_equal_on_code(str(PYTHON_10M), dtype="bfloat16", quantization="fp8_per_channel")


def assert_equal_on_code(model: str, exit_layer: int | list[int] = 4, **arguments) -> None:
    lines = (PYTHON_10M / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines][:8]
    expected, actual, counted = both(
        model, prompts, greedy(64), exit_layer, num_speculative_tokens=4, **arguments
    )
    assert actual == expected
    assert_speculated(counted)


def create_engine_config(model: str, **arguments):
    engine_args = EngineArgs(model, max_model_len=64, spec_model="self:3", **arguments)
    return engine_args.create_engine_config()


def change_quantization(model: str, **changes) -> str:
    """Update the checkpoint's quantization configuration in place; returns its path."""
    path = Path(model) / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= changes
    path.write_text(json.dumps(config))
    return model


PER_TENSOR = {"_type": "PerTensor", "_version": 1, "_data": {}}

FP8_KV = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
def test_a_checkpoint_that_quantizes_the_kv_cache_is_refused(
    random_llama, tmp_path, kv_cache_dtype
):
    model = quantized(random_llama(), tmp_path, "w8a8")
    assert create_engine_config(model).model_config.quantization == "compressed-tensors"
    change_quantization(model, kv_cache_scheme=FP8_KV)
    with pytest.raises(ValueError, match="does not support the checkpoint's quantized KV cache"):
        create_engine_config(model, kv_cache_dtype=kv_cache_dtype)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("modelopt-fp8", {"kv_cache_scheme": FP8_KV}),
        ("modelopt-fp8", {"quantization": {"kv_cache_quant_algo": "FP8"}}),
        ("modelopt-fp8", {"quantization": {"quant_algo": "FP8"}, "kv_cache_scheme": FP8_KV}),
        ("quark-w8a8", {"export": {"kv_cache_group": ["*k_proj"], "pack_method": "order"}}),
    ],
)
def test_other_quantized_kv_checkpoints_are_refused(name, changes):
    config = CONFIGS[name]
    assert refused_quantization(model_config_with(config), kv_cache_follows_checkpoint=True) == []
    found = refused_quantization(
        model_config_with(config | changes), kv_cache_follows_checkpoint=True
    )
    assert found == ["the checkpoint's quantized KV cache"]
    assert (
        refused_quantization(model_config_with(config | changes), kv_cache_follows_checkpoint=False)
        == []
    )


def model_config_with(quantization_config: dict) -> SimpleNamespace:
    """The parts of vLLM's `ModelConfig` that are read; the real one needs a checkpoint."""
    return SimpleNamespace(
        model_arch_config=SimpleNamespace(quantization_config=quantization_config),
        quantization=quantization_config.get("quant_method"),
    )


def test_activations_scaled_by_the_whole_batch_are_refused(random_llama, tmp_path):
    model = quantized(random_llama(), tmp_path, "w8a8-fp8")
    groups = CONFIGS["w8a8-fp8"]["config_groups"]
    inputs = groups["group_0"]["input_activations"] | {"strategy": "tensor"}
    change_quantization(
        model, config_groups={"group_0": groups["group_0"] | {"input_activations": inputs}}
    )
    with pytest.raises(ValueError, match="activations that are scaled by the whole batch"):
        create_engine_config(model)


@pytest.mark.parametrize("in_a_file", [False, True])
def test_activations_that_torchao_scales_by_the_whole_batch_are_refused(tmp_path, in_a_file):
    config = {
        "_type": "Int8DynamicActivationInt8WeightConfig",
        "_data": {"granularity": PER_TENSOR},
    }
    overrides = {"quantization_config_dict_json": json.dumps(config)}
    if in_a_file:
        file = tmp_path / "torchao.json"
        file.write_text(overrides.pop("quantization_config_dict_json"))
        overrides["quantization_config_file"] = str(file)
    model_config = model_config_with({})
    model_config.quantization, model_config.hf_overrides = "torchao", overrides
    (found,) = refused_quantization(model_config, kv_cache_follows_checkpoint=True)
    assert "whole batch" in found


def test_a_checkpoint_written_by_torchao_is_refused():
    (found,) = refused_quantization(
        model_config_with({"quant_method": "torchao"}), kv_cache_follows_checkpoint=True
    )
    assert found.startswith("checkpoints that torchao has written; round a plain one")


def test_activations_that_quark_scales_by_the_whole_batch_are_refused():
    per_tensor = {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": True}
    everywhere = {"global_quant_config": {"input_tensors": per_tensor}}
    somewhere = {"layer_quant_config": {"*down_proj": {"input_tensors": per_tensor}}}
    for changes in (everywhere, somewhere):
        config = CONFIGS["quark-w8a8"] | changes
        (found,) = refused_quantization(model_config_with(config), kv_cache_follows_checkpoint=True)
        assert "whole batch" in found


def test_a_draft_vocabulary_with_a_quantized_lm_head_is_refused():
    lm_head = SimpleNamespace(quant_method=object())
    with pytest.raises(ValueError, match="draft_vocab_size=3 needs an LM head that is not quan"):
        DraftHead(lm_head, np.arange(3))
