"""Engine settings that work with `self:E`, and operations on a running engine."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from layerskip_vllm.measure.engine import scheduler
from tests.engine.engines import (
    as_prompts,
    assert_speculated,
    both,
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
from tests.engine.scripted_choices import ScriptedChoices

WEIGHTS = "model.safetensors"

needs_fp8 = pytest.mark.skipif(
    not torch.cpu._is_avx512_supported(),
    reason="vLLM's CPU attention needs AVX-512 for an fp8 KV cache (cpu_attn.py)",
)


@pytest.fixture(scope="module")
def model(random_llama):
    """Its drafts are accepted about half of the time."""
    return random_llama(num_layers=6, late_scale=0.3)


@needs_fp8
@pytest.mark.parametrize("kv_cache_dtype", ["fp8", "fp8_e5m2"])
def test_fp8_kv_cache(model, kv_cache_dtype):
    prompts = as_prompts(random_prompts([5, 17, 40]))
    expected, actual, counted = both(model, prompts, greedy(30), kv_cache_dtype=kv_cache_dtype)
    assert actual == expected
    assert_speculated(counted)


def embedded_prompts(model: str) -> list[dict]:
    """Prompts of tokens, of embeddings that match no token, and of both."""
    table = load_file(Path(model) / WEIGHTS)["model.embed_tokens.weight"]
    noise = torch.Generator().manual_seed(0)
    tokens, *rest = random_prompts([20, 5, 40, 33])

    def embedded(ids: list[int]) -> torch.Tensor:
        return table[ids] + 0.1 * torch.randn(len(ids), table.shape[1], generator=noise)

    mixed = rest.pop()
    is_token = [i % 3 == 0 for i in range(len(mixed))]
    return [
        {"prompt_token_ids": tokens},
        *({"prompt_embeds": embedded(ids)} for ids in rest),
        {
            "prompt_embeds": embedded(mixed),
            "prompt_token_ids": mixed,
            "prompt_is_token_ids": is_token,
        },
    ]


@pytest.mark.on_v2
@pytest.mark.parametrize("exit_layer", [5, [1, 3, 5]], ids=["self:5", "self:auto"])
def test_prompt_embeddings(model, exit_layer):
    """Chunked beside decodes, and a second time from the prefix cache."""
    prompts = embedded_prompts(model) * 2
    flags = {"enable_prompt_embeds": True, "max_num_batched_tokens": 32, "max_num_seqs": 4}
    expected, actual, counted = both(model, prompts, greedy(40), exit_layer, **flags)
    assert actual == expected
    assert expected[0] != expected[1] != expected[2]
    assert_speculated(counted)


def test_priorities_decide_who_is_preempted(model, monkeypatch):
    prompts = as_prompts(random_prompts([40, 50, 30, 45, 38, 42], seed=5))
    params = greedy(120, ignore_eos=True)
    expected = generate_plainly(model, prompts, params)
    llm = make_self_llm(model, 3, 4, num_gpu_blocks_override=16, scheduling_policy="priority")
    its_scheduler, preempted = scheduler(llm), []
    original = its_scheduler._preempt_request

    def preempt(request, *args, **kwargs):
        preempted.append(request.priority)
        original(request, *args, **kwargs)

    monkeypatch.setattr(its_scheduler, "_preempt_request", preempt)
    before = counts(llm)
    # The last is the most urgent; with equal priorities it would be preempted first.
    outputs = llm.generate(prompts, params, priority=[9, 9, 9, 9, 9, 0], use_tqdm=False)
    counted = counts(llm).since(before)
    close(llm)
    assert [list(output.outputs[0].token_ids) for output in outputs] == expected
    assert set(preempted) == {9}
    assert_speculated(counted)


def changed(model: str, directory: Path) -> str:
    """A copy of a checkpoint with a changed first layer, whose LM head gives the next token id."""
    shutil.copytree(model, directory)
    weights = load_file(directory / WEIGHTS)
    weights["model.layers.0.mlp.down_proj.weight"] *= -1
    weights["lm_head.weight"] = weights["lm_head.weight"].roll(1, dims=0)
    save_file(weights, directory / WEIGHTS, {"format": "pt"})
    return str(directory)


def reload_during_generation(llm, path: str, num_tokens: int) -> tuple[list[int], int]:
    """Output of a request, and its number of tokens when the weights changed."""
    engine, num_before, token_ids = llm.llm_engine, 0, []
    prompt = {"prompt_token_ids": random_prompts([40], seed=6)[0]}
    engine.add_request("reload", prompt, greedy(60, ignore_eos=True))
    while engine.has_unfinished_requests():
        for output in engine.step():
            token_ids = list(output.outputs[0].token_ids)
        if not num_before and len(token_ids) >= num_tokens:
            num_before = len(token_ids)
            llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
    return token_ids, num_before


@pytest.mark.parametrize("exit_layer", [pytest.param(3, marks=pytest.mark.on_v2), [3, 4, 5]])
def test_a_reload_replaces_all_old_weights(random_llama, tmp_path, exit_layer):
    """Also for running requests, which keep their KV.

    Layers [3, L) add nothing, so drafts are accepted if their layers and LM head are the target's.
    """
    model = random_llama(late_from=3, late_scale=0.0)
    other = changed(model, tmp_path / "changed")
    prompts, params = as_prompts(random_prompts([5, 17, 40])), greedy(31, ignore_eos=True)
    fresh = make_llm(other)
    expected = generate(fresh, prompts, params)
    close(fresh)
    draft_counts = tmp_path / "counts.json"
    draft_counts.write_text(json.dumps({}))
    options = {"draft_vocab_size": 320, "draft_vocab_counts": str(draft_counts)}
    plain, llm = make_llm(model), make_self_llm(model, exit_layer, 3, options)
    if isinstance(exit_layer, list):  # observing steps would resume nothing
        ScriptedChoices(llm, 3, 3, observing=0)
    assert generate(plain, prompts, params) != expected

    output, num_tokens = reload_during_generation(llm, other, num_tokens=12)
    assert (output, num_tokens) == reload_during_generation(plain, other, num_tokens)
    for engine in (plain, llm):
        engine.reset_prefix_cache()
    before = counts(llm)
    assert generate(plain, prompts, params) == expected
    assert generate(llm, prompts, params) == expected
    counted = counts(llm).since(before)
    close(plain)
    close(llm)
    assert counted.num_accepted == counted.num_drafted > 0
    assert counted.num_resumed == counted.num_drafts + counted.num_drafted  # t, and its drafts


@pytest.fixture(scope="module")
def small_model(random_llama):
    return random_llama(num_layers=3, late_scale=0.3)


NUM_TOKENS = 20
"""Output length of the compiled engine's requests."""


def plain_output(model: str, prompts: list[dict], **flags) -> list[list[int]]:
    return generate_plainly(model, prompts, greedy(NUM_TOKENS, ignore_eos=True), **flags)


@pytest.fixture(scope="module")
def expected_of_embeddings(small_model):
    return plain_output(small_model, embedded_prompts(small_model), enable_prompt_embeds=True)


@pytest.fixture(scope="module")
def reloaded(small_model, tmp_path_factory):
    """Another checkpoint and its plain output."""
    other = changed(small_model, tmp_path_factory.mktemp("changed") / "model")
    return other, plain_output(other, as_prompts(random_prompts([5, 17, 40])))


@pytest.fixture(scope="module")
def compiled(small_model, expected_of_embeddings, reloaded, tmp_path_factory):
    """Opened after the plain engines: closing one destroys the process groups."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CACHE_ROOT", str(tmp_path_factory.mktemp("cache")))
        llm = make_self_llm(small_model, 2, 3, enable_prompt_embeds=True, enforce_eager=False)
        yield llm
        close(llm)


def assert_output(compiled, prompts: list[dict], expected: list[list[int]]) -> None:
    resumed_before = runner(compiled).num_resumed_tokens
    assert generate(compiled, prompts, greedy(NUM_TOKENS, ignore_eos=True)) == expected
    assert runner(compiled).num_resumed_tokens > resumed_before


@pytest.mark.slow
def test_prompt_embeddings_with_compiled_segments(compiled, small_model, expected_of_embeddings):
    """Segments compile once, so drafts and prompts must have the same input form."""
    assert_output(compiled, embedded_prompts(small_model), expected_of_embeddings)


@pytest.mark.slow
def test_weights_reload_with_compiled_segments(compiled, reloaded):
    """On a CPU the weights are packed; the reload must replace the packed ones."""
    other, expected = reloaded
    compiled.collective_rpc("reload_weights", kwargs={"weights_path": other})
    compiled.reset_prefix_cache()
    assert_output(compiled, as_prompts(random_prompts([5, 17, 40])), expected)
