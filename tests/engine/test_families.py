"""Mistral, Qwen2 and Qwen3, and sliding-window attention."""

import json
import shutil
from types import SimpleNamespace

import pytest
from vllm.engine.arg_utils import EngineArgs

from layerskip_vllm.models.mistral import EarlyExitMistralForCausalLM
from tests.engine.cut_models import MAX_TOKENS, PROMPTS, early_exit, transformers_outputs
from tests.engine.engines import (
    as_prompts,
    assert_speculated,
    close,
    counts,
    generate,
    generate_plainly,
    greedy,
    make_llm,
    make_self_llm,
    random_prompts,
    runner,
)
from tests.engine.features import IN_ALL_SCENARIOS, IN_ONE_SCENARIO, NUM_LAYERS, WINDOW

LENGTHS = [5, 17, 40, 90, 3, 20]
SHAPES = {
    name: feature.shape
    for name, feature in (IN_ALL_SCENARIOS | IN_ONE_SCENARIO).items()
    if "family" in feature.shape and feature.adapted_embeddings is None
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_early_exit_equals_transformers_cut_model(random_model, shape):
    model = random_model(**shape)
    llm = make_llm(model, **early_exit(2))
    outputs = generate(llm, as_prompts(PROMPTS), greedy(MAX_TOKENS))
    close(llm)
    assert outputs == transformers_outputs(model, 2)
    assert outputs != transformers_outputs(model, NUM_LAYERS)


@pytest.fixture(scope="module")
def windowed(random_model):
    return random_model(family="mistral", sliding_window=WINDOW, late_scale=0.3)


def test_a_window_changes_the_output(random_model, windowed):
    """Otherwise the tests with a window would prove nothing."""
    prompts = as_prompts(random_prompts([90, 70]))
    models = (windowed, random_model(family="mistral", late_scale=0.3))
    outputs = [generate_plainly(model, prompts, greedy(40)) for model in models]
    assert outputs[0] != outputs[1]


@pytest.fixture(scope="module")
def alternating(random_llama, tmp_path_factory):
    """A Llama in which every other layer has a sliding window, set by its `layer_types`."""
    path = tmp_path_factory.mktemp("alternating") / "model"
    shutil.copytree(random_llama(num_layers=NUM_LAYERS, late_scale=0.3), path)
    config = json.loads((path / "config.json").read_text())
    layer_types = ["sliding_attention", "full_attention"] * (NUM_LAYERS // 2)
    config |= {"layer_types": layer_types, "sliding_window": WINDOW}
    (path / "config.json").write_text(json.dumps(config))
    return str(path)


def num_kv_cache_groups(llm) -> int:
    return len(runner(llm).kv_cache_config.kv_cache_groups)


@pytest.mark.parametrize("exit_layer", [1, 2, 3])
def test_layers_of_two_types_share_their_blocks(alternating, exit_layer):
    prompts = as_prompts(random_prompts(LENGTHS))
    plain = make_llm(alternating)
    groups_of_plain = num_kv_cache_groups(plain)
    expected = generate(plain, prompts, greedy(60))
    close(plain)
    llm = make_self_llm(alternating, exit_layer, 3)
    groups = num_kv_cache_groups(llm)
    before = counts(llm)
    actual = generate(llm, prompts, greedy(60))
    counted = counts(llm).since(before)
    close(llm)
    assert actual == expected
    assert_speculated(counted)
    assert (groups, groups_of_plain) == (1, 2)


def test_separate_blocks_per_layer_type_are_refused(alternating):
    args = EngineArgs(
        alternating,
        max_model_len=64,
        spec_model="self:3",
        disable_hybrid_kv_cache_manager=False,
    )
    message = r"differs \(full_attention, sliding_attention\): leave out --no-disable-hybrid"
    with pytest.raises(ValueError, match=message):
        args.create_engine_config()


@pytest.mark.slow
def test_local_argmax_drafts_the_same_tokens_with_qwen2(random_model):
    """vLLM's Qwen2 has no such method; ours does."""
    model = random_model(family="qwen2", tied=True, late_scale=0.3)
    prompts = as_prompts(random_prompts(LENGTHS))
    outputs, counted = [], []
    for is_local in (False, True):
        llm = make_self_llm(
            model, 3, 3, speculative_config={"use_local_argmax_reduction": is_local}
        )
        before = counts(llm)
        outputs.append(generate(llm, prompts, greedy(60)))
        counted.append(counts(llm).since(before))
        close(llm)
    assert outputs[0] == outputs[1]
    assert counted[0] == counted[1]
    assert_speculated(counted[0])


def test_compiled_qwen3_gives_plain_output(random_model, monkeypatch, tmp_path):
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    model = random_model(family="qwen3", num_layers=3, late_scale=0.3)
    prompts = as_prompts(random_prompts([5, 33, 9]))
    params = [greedy(n, ignore_eos=True) for n in (40, 8, 20)]
    expected = generate_plainly(model, prompts, params)
    llm = make_self_llm(model, 2, 3, enforce_eager=False)
    before = counts(llm)
    actual = generate(llm, prompts, params)
    counted = counts(llm).since(before)
    close(llm)
    assert actual == expected
    assert_speculated(counted)


def test_unused_layers_are_recognised_in_mistrals_own_format():
    model = SimpleNamespace(config=SimpleNamespace(num_hidden_layers=2))

    def is_unused(name: str) -> bool:
        return EarlyExitMistralForCausalLM.is_unused_checkpoint_weight(model, name)

    assert not is_unused("layers.1.feed_forward.w1.weight")
    assert is_unused("layers.2.feed_forward.w1.weight")
    assert is_unused("model.layers.2.mlp.down_proj.weight")
    assert not is_unused("norm.weight")
