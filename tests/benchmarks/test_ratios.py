"""Two ratios with a wide margin: a gross loss fails, a busy machine does not.

The tests print them; docs/performance.md has the figures of an idle machine.
"""

import statistics

import pytest

from layerskip_vllm.measure.engine import VllmEngine
from tests.engine.engines import random_prompts

EXIT_LAYER, NUM_LAYERS, NUM_SPECULATIVE_TOKENS = 2, 12, 4
NUM_ROUNDS, MAX_TOKENS = 5, 40
LEAST_RATIO = 1 / 4
PROMPTS = random_prompts([16, 16])


@pytest.fixture(scope="module")
def engines(random_llama):
    """Engines of a model whose remaining layers add nothing, so that every draft is accepted."""
    common = {
        "model": random_llama(num_layers=NUM_LAYERS, late_scale=0.0, late_from=EXIT_LAYER),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_seqs": 8,
        "kv_cache_memory_bytes": 64 << 20,
        "enable_prefix_caching": False,
        "seed": 0,
    }
    own = {
        "model": f"self:{EXIT_LAYER}",
        "num_speculative_tokens": NUM_SPECULATIVE_TOKENS,
    }
    never_drafts = own | {"num_speculative_tokens_per_batch_size": [[1, 128, 0]]}
    fixed = {"additional_config": {"layerskip": {"adaptive": False}}}
    engines = {
        "plain": VllmEngine(common),
        "self": VllmEngine(common | fixed | {"speculative_config": own}),
        "K = 0": VllmEngine(common | fixed | {"speculative_config": never_drafts}),
    }
    yield engines
    for engine in engines.values():
        engine.close()


@pytest.fixture(scope="module")
def decodings(engines):
    for engine in engines.values():
        engine.decode(PROMPTS, MAX_TOKENS)
    rounds = [
        {name: engine.decode(PROMPTS, MAX_TOKENS) for name, engine in engines.items()}
        for _ in range(NUM_ROUNDS)
    ]
    return {name: [decodings[name] for decodings in rounds] for name in engines}


@pytest.mark.parametrize("name", ["self", "K = 0"])
def test_no_gross_loss_to_plain(decodings, name, capsys):
    ratio = statistics.median(
        ours.tokens_per_s / plain.tokens_per_s
        for ours, plain in zip(decodings[name], decodings["plain"], strict=True)
    )
    with capsys.disabled():
        print(f"\n{name} / plain: {ratio:.2f} of the tokens/s")
    assert ratio > LEAST_RATIO


def test_every_draft_is_accepted_if_the_remaining_layers_add_nothing(decodings):
    for decoding in decodings["self"]:
        assert decoding.drafts.acceptance_rate == 1
        assert decoding.tokens_per_step == NUM_SPECULATIVE_TOKENS + 1


def test_nothing_is_drafted_at_k_0(decodings):
    for decoding in decodings["K = 0"]:
        assert decoding.drafts.num_drafted == 0
        assert decoding.tokens_per_step == 1


def test_texts_are_equal(decodings):
    for name, rounds in decodings.items():
        assert rounds[0].token_ids == decodings["plain"][0].token_ids, name
