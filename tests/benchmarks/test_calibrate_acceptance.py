"""Bisection on a function with a known answer, loop detection, and agreement."""

from itertools import pairwise

import pytest
import torch

from benchmarks.calibrate_acceptance import (
    Agreement,
    calibrate_acceptance,
    measure_agreement,
    new_ngrams,
)
from benchmarks.random_llama import SMALL, LateLayers

EXIT_LAYER = 2


def falling(scale):
    return Agreement(mean=1 - scale**0.5, by_prompt=[], new_ngrams=1.0)


def test_bisection_finds_the_scale_of_the_target():
    found = calibrate_acceptance(falling, target=0.8, tolerance=0.01)
    assert abs(1 - found.scale**0.5 - 0.8) <= 0.01
    assert found.agreement == falling(found.scale)
    assert found.tries[-1] == (found.scale, found.agreement.mean)


def test_every_try_halves_the_interval():
    tried = [scale for scale, _ in calibrate_acceptance(falling, target=0.8, tolerance=0.01).tries]
    widths = [abs(b - a) for a, b in pairwise(tried)]
    assert widths == [0.5 ** (i + 2) for i in range(len(widths))]


def test_an_unreachable_target_is_an_error_that_lists_the_tries():
    with pytest.raises(ValueError, match=r"no scale gives 0.8 .*\(0.5, 0.1\)"):
        calibrate_acceptance(lambda scale: Agreement(0.1, [], 1.0), target=0.8, tolerance=0.01)


def test_a_loop_has_few_new_ngrams():
    assert new_ngrams(range(20)) == 1
    assert new_ngrams([1, 2, 3] * 10) == 3 / 27


@pytest.fixture(scope="module")
def model():
    return SMALL.build(torch.float32)


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(SMALL.vocab_size, (4, 8), generator=generator).tolist()


def test_without_late_layers_the_exit_always_agrees(model, prompts):
    late_layers = LateLayers(model, EXIT_LAYER)
    late_layers.scale(0)
    assert measure_agreement(model, EXIT_LAYER, prompts, max_tokens=12).mean == 1
    late_layers.scale(1)
    assert measure_agreement(model, EXIT_LAYER, prompts, max_tokens=12).mean < 0.5


def test_scaling_back_restores_the_weights(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    late_layers = LateLayers(model, EXIT_LAYER)
    late_layers.scale(0.3)
    late_layers.scale(1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_low_ids_of_a_zipf_vocabulary_are_frequent():
    skewed = type(SMALL)(**(vars(SMALL) | {"zipf_exponent": 2.0, "vocab_size": 4096}))
    norms = skewed.build(torch.float32).lm_head.weight.norm(dim=1)
    assert norms[:64].mean() > 4 * norms[-64:].mean()
