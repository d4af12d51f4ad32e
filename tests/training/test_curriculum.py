"""Active exits and their weights against hand-computed tables."""

import pytest

from layerskip_vllm.training.curriculum import (
    Fixed,
    Gradual,
    Rotational,
    exit_scale,
    exit_weights,
)


def test_rotation_turns_on_every_third_layer_and_shifts_by_one_each_step():
    exits = [Rotational(3).exits(step, 99, num_layers=8) for step in range(4)]
    assert exits == [[1, 4, 7], [2, 5], [3, 6], [1, 4, 7]]


def test_rotation_over_all_early_layers_has_one_exit_a_step():
    exits = [Rotational(7).exits(step, 99, num_layers=8) for step in range(8)]
    assert exits == [[1], [2], [3], [4], [5], [6], [7], [1]]


def test_gradual_adds_one_exit_from_the_top_each_t_over_2l_steps():
    # L = 4, T = 40: one more each 5 steps, all three early exits from step 15.
    exits = {step: Gradual().exits(step, 40, num_layers=4) for step in (0, 4, 5, 10, 15, 39)}
    assert exits == {0: [], 4: [], 5: [3], 10: [2, 3], 15: [1, 2, 3], 39: [1, 2, 3]}


def test_fixed_exits_stay():
    assert Fixed((4, 2)).exits(17, 40, num_layers=8) == [2, 4]


def test_scales_of_the_paper():
    # e(l) = 0.5 * (0 + ... + l), and for the last layer 4 + 0.5 * (0 + 1 + 2 + 3).
    assert [exit_scale(layer, 5, 0.5) for layer in range(5)] == [0, 0.5, 1.5, 3, 7]


@pytest.mark.parametrize(
    ("curriculum", "e_scale", "weights"),
    [
        (Fixed((2,)), 0.5, {2: 0.5 / 7.5, 5: 7 / 7.5}),
        (Fixed((2, 3, 4)), 0.5, {2: 0.5 / 12, 3: 1.5 / 12, 4: 3 / 12, 5: 7 / 12}),
        (Fixed((1, 2)), 0.5, {2: 0.5 / 7.5, 5: 7 / 7.5}),
        (Fixed((2, 3)), 0.0, {5: 1.0}),
        (Rotational(4), 1.0, {5: 1.0}),
    ],
    ids=["one exit", "three exits", "layer 0 weighs nothing", "e_scale 0", "only layer 0 on"],
)
def test_weights_of_active_exits_add_up_to_1(curriculum, e_scale, weights):
    assert exit_weights(curriculum, 0, 9, num_layers=5, e_scale=e_scale) == pytest.approx(weights)
