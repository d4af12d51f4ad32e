"""Adapters apply to drafts, early and remaining layers, each to its own requests."""

import pytest
from vllm.lora.request import LoRARequest

from tests.adapters import save_adapter
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
)
from tests.engine.features import EXIT_LAYER, LORA, NUM_LAYERS

pytestmark = pytest.mark.runner_v1
"""On V2 `self:E` refuses LoRA."""

K = 3
EXITS = [1, EXIT_LAYER, NUM_LAYERS - 1]
"""Of `self:auto`."""
LENGTHS = [5, 17, 40, 90, 3, 20]


@pytest.fixture(scope="module")
def model(random_llama):
    return random_llama(num_layers=NUM_LAYERS, late_scale=0.3)


@pytest.fixture(scope="module")
def adapters(model, tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapters")
    return [
        LoRARequest(name, n, save_adapter(model, directory / name, n, range(NUM_LAYERS)))
        for n, name in enumerate("abc", start=1)
    ]


@pytest.fixture(scope="module")
def mixture(adapters):
    """The adapter of each of six requests."""
    a, b, c = adapters
    return [a, None, b, c, a, None]


@pytest.fixture(scope="module")
def prompts():
    return as_prompts(random_prompts(LENGTHS))


@pytest.fixture(scope="module")
def plain_outputs(model, prompts, mixture):
    return generate_plainly(model, prompts, greedy(60), mixture, **LORA)


def test_plain_decoding_gives_each_request_its_own_adapter(
    model, prompts, adapters, mixture, plain_outputs
):
    """Validates the reference: without an adapter the base model answers; all adapters differ."""
    without = generate_plainly(model, prompts, greedy(60))
    for adapter, actual, expected in zip(mixture, plain_outputs, without, strict=True):
        assert (actual == expected) == (adapter is None)
    plain = make_llm(model, **LORA)
    first = [generate(plain, prompts[:1], greedy(60), adapter)[0] for adapter in adapters]
    close(plain)
    assert first[0] == plain_outputs[0]
    assert len({tuple(ids) for ids in first}) == len(adapters)


@pytest.mark.parametrize("exit_layer", [1, NUM_LAYERS - 1, EXITS], ids=str)
def test_several_adapters_and_none_in_one_batch(model, prompts, mixture, plain_outputs, exit_layer):
    llm = make_self_llm(model, exit_layer, K, **LORA)
    before = counts(llm)
    outputs = generate(llm, prompts, greedy(60), mixture)
    counted = counts(llm).since(before)
    close(llm)
    assert outputs == plain_outputs
    assert_speculated(counted)


def test_requests_without_an_adapter_get_none_when_every_slot_is_taken(
    model, prompts, mixture, plain_outputs
):
    llm = make_self_llm(model, EXIT_LAYER, K, **(LORA | {"max_loras": 3}))
    outputs = generate(llm, prompts, greedy(60), mixture)
    close(llm)
    assert outputs == plain_outputs


def test_adapters_take_turns_in_too_few_slots(model, prompts, mixture, plain_outputs):
    llm = make_self_llm(model, EXIT_LAYER, K, **(LORA | {"max_loras": 2}))
    before = counts(llm)
    outputs = generate(llm, prompts, greedy(60), mixture)
    counted = counts(llm).since(before)
    close(llm)
    assert outputs == plain_outputs
    assert_speculated(counted)


def test_drafts_use_the_adapter_in_early_layers_and_embeddings(random_llama, tmp_path):
    """Later layers add nothing and have no adapter, so a correct draft equals the target."""
    model = random_llama(num_layers=NUM_LAYERS, late_from=EXIT_LAYER, late_scale=0.0)
    a, b = (
        LoRARequest(str(n), n, save_adapter(model, tmp_path / str(n), n, range(EXIT_LAYER)))
        for n in (1, 2)
    )
    prompts, mixture = as_prompts(random_prompts([9, 4, 30])), [a, None, b]
    params = greedy(1 + 5 * (K + 1), ignore_eos=True)
    expected, actual, counted = both(
        model, prompts, params, EXIT_LAYER, K, lora_request=mixture, **LORA
    )
    assert actual == expected
    assert counted.num_drafts == 5 * len(prompts)
    assert counted.num_accepted == counted.num_drafted == K * counted.num_drafts
    assert counted.num_resumed == counted.num_drafts + counted.num_drafted  # t, and its drafts


def by_itself(engine, adapter) -> None:
    engine.add_lora(adapter)


def with_a_request(engine, adapter) -> None:
    (prompt,) = as_prompts(random_prompts([9], seed=3))
    engine.add_request("other", prompt, greedy(60, ignore_eos=True), lora_request=adapter)


def decode_and_swap(llm, prompt, old, new, swap, num_before: int | None = None):
    """Decode a request, and replace its adapter once it has `num_before` tokens, by default 10.

    Returns:
        (all tokens, number of tokens at the replacement).
    """
    engine = llm.llm_engine
    engine.add_request("r", prompt, greedy(60, ignore_eos=True), lora_request=old)
    token_ids, swapped_at = [], None
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.request_id == "r":
                token_ids = list(output.outputs[0].token_ids)
        if swapped_at is None and len(token_ids) >= (num_before or 10):
            swapped_at = len(token_ids)
            swap(engine, LoRARequest(old.lora_name, 1, new.lora_path, load_inplace=True))
    close(llm)
    return token_ids, swapped_at


@pytest.mark.parametrize("exit_layer", [EXIT_LAYER, [EXIT_LAYER, NUM_LAYERS - 1]], ids=str)
@pytest.mark.parametrize("swap", [by_itself, with_a_request])
def test_states_of_a_replaced_adapter_are_not_resumed(random_llama, tmp_path, swap, exit_layer):
    """All drafts are right, so some are pending when the adapter is replaced."""
    model = random_llama(num_layers=NUM_LAYERS, late_from=EXIT_LAYER, late_scale=0.0)
    old, new = (
        LoRARequest("a", 1, save_adapter(model, tmp_path / str(n), n, range(EXIT_LAYER)))
        for n in (1, 2)
    )
    (prompt,) = as_prompts(random_prompts([17]))
    llm = make_self_llm(model, exit_layer, K, **LORA)
    actual, swapped_at = decode_and_swap(llm, prompt, old, new, swap)
    expected, _ = decode_and_swap(make_llm(model, **LORA), prompt, old, new, swap, swapped_at)
    untouched, _ = decode_and_swap(make_llm(model, **LORA), prompt, old, new, swap, 60)
    assert actual == expected != untouched


@pytest.mark.parametrize("exit_layer", [EXIT_LAYER, EXITS], ids=str)
def test_as_many_adapters_as_requests_fit_in_a_batch(
    model, prompts, mixture, plain_outputs, exit_layer
):
    """Idle rows that pad a forward of two must not form a third run of rows with one adapter."""
    llm = make_self_llm(model, exit_layer, K, max_num_seqs=2, **LORA)
    before = counts(llm)
    outputs = generate(llm, prompts, greedy(60), mixture)
    counted = counts(llm).since(before)
    close(llm)
    assert outputs == plain_outputs
    assert_speculated(counted)


def test_prompt_logprobs_use_the_requests_adapter(model, adapters):
    """vLLM computes them after drafting, with the adapters from the start of the step."""
    prompts, params = as_prompts(random_prompts([20])), greedy(12, prompt_logprobs=0)

    def ids_and_logprobs(llm) -> tuple[list[int], list[float]]:
        (output,) = llm.generate(prompts, params, use_tqdm=False, lora_request=adapters[0])
        close(llm)
        of_prompt = [next(iter(entry.values())).logprob for entry in output.prompt_logprobs[1:]]
        return list(output.outputs[0].token_ids), of_prompt

    expected_ids, expected = ids_and_logprobs(make_llm(model, **LORA))
    actual_ids, actual = ids_and_logprobs(make_self_llm(model, EXIT_LAYER, K, **LORA))
    assert actual_ids == expected_ids
    assert actual == pytest.approx(expected, abs=1e-4)
