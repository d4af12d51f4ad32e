"""Scaled rotary embeddings past the context that the model was trained on."""

import pytest

from tests.engine.engines import (
    as_prompts,
    assert_speculated,
    both,
    generate_plainly,
    greedy,
    random_prompts,
)
from tests.models import ORIGINAL_CONTEXT

# The answers begin within the original context, at its end and past it.
PROMPTS = as_prompts(random_prompts([20, ORIGINAL_CONTEXT - 1, 130]))
PARAMS = greedy(40, ignore_eos=True)
SHAPE = {"num_layers": 6, "late_scale": 0.3, "max_position_embeddings": 8 * ORIGINAL_CONTEXT}


@pytest.mark.parametrize("rope", ["yarn", pytest.param("llama3", marks=pytest.mark.on_v2)])
def test_a_scaled_rope_past_the_original_context(random_llama, rope):
    """In chunks, so that early and remaining layers take their positions from mixed batches."""
    model = random_llama(rope=rope, **SHAPE)
    expected, actual, counted = both(
        model, PROMPTS, PARAMS, exit_layer=3, max_num_batched_tokens=48, max_num_seqs=8
    )
    assert actual == expected
    assert_speculated(counted)
    # Equal weights: the scaling alone makes the difference.
    unscaled = generate_plainly(random_llama(**SHAPE), PROMPTS, PARAMS)
    assert all(one != other for one, other in zip(expected, unscaled, strict=True))
