"""Two ranks support what one rank supports, with the output of two ranks that decode plainly."""

import pytest
from vllm.lora.request import LoRARequest

from tests.adapters import save_adapter
from tests.engine.engines import (
    as_prompts,
    close,
    generate,
    greedy,
    make_llm,
    make_self_llm,
    random_prompts,
)
from tests.parallel import ranks
from tests.quantize import quantized

TWO_RANKS = {"tensor_parallel_size": 2}

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("two_cores")]


def assert_equal_to_plain_ranks(model: str, lora_request=None, **flags) -> None:
    prompts, params = as_prompts(random_prompts([5, 17, 40, 3])), greedy(40)
    plain = make_llm(model, **TWO_RANKS, **flags)
    expected = generate(plain, prompts, params, lora_request)
    close(plain)
    llm = make_self_llm(model, 3, 4, **TWO_RANKS, **flags)
    llm.collective_rpc(ranks.record_drafts)
    outputs = generate(llm, prompts, params, lora_request)
    (first, second), resumed = (
        llm.collective_rpc(function) for function in (ranks.drafts_of, ranks.num_resumed_tokens)
    )
    close(llm)
    assert outputs == expected
    assert first == second
    assert resumed[0] == resumed[1] > 0


@pytest.mark.runner_v1
def test_adapters(model, tmp_path):
    a, b = (
        LoRARequest(str(n), n, save_adapter(model, tmp_path / str(n), n, range(6))) for n in (1, 2)
    )
    flags = {"enable_lora": True, "max_loras": 3}
    assert_equal_to_plain_ranks(model, lora_request=[a, None, b, a], **flags)


def test_quantized_weights_and_activations(model, tmp_path):
    assert_equal_to_plain_ranks(quantized(model, tmp_path, "w8a8"))


def test_fp8_kv_cache(model):
    assert_equal_to_plain_ranks(model, kv_cache_dtype="fp8")


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_every_family(random_model, family):
    assert_equal_to_plain_ranks(random_model(family=family, late_scale=0.3))
