"""Layer dropout: rates, dropped rows, and what is computed."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from layerskip_vllm.training.layer_dropout import LayerDropout, install_layer_dropout


def test_rates_rise_from_0_to_p_max_over_the_layers():
    rates = LayerDropout(num_layers=5, p_max=0.2).rates(step=3, num_steps=10)
    by_hand = [(2 ** (layer / 4) - 1) * 0.2 for layer in range(5)]
    assert rates == pytest.approx(by_hand)
    assert (rates[0], rates[-1]) == pytest.approx((0, 0.2))


def test_the_exponential_schedule_rises_from_0_to_1_over_the_steps():
    dropout = LayerDropout(num_layers=3, p_max=0.4, schedule="exponential")
    last_layer = [dropout.rates(step, num_steps=11)[-1] for step in range(11)]
    by_hand = [(math.exp(step * math.log(2) / 10) - 1) * 0.4 for step in range(11)]
    assert last_layer == pytest.approx(by_hand)


def test_layers_are_dropped_as_often_as_their_rates_say():
    dropout = LayerDropout(num_layers=6, p_max=0.5, schedule="exponential", seed=3)
    num_rows, num_steps = 4000, 5
    for step in (0, 2, 4):
        kept = dropout.kept_rows(step, num_steps, first_row=0, num_rows=num_rows)
        frequencies = 1 - np.array([len(rows) for rows in kept]) / num_rows
        rates = dropout.rates(step, num_steps)
        standard_errors = np.sqrt(rates * (1 - rates) / num_rows)
        assert (abs(frequencies - rates) <= 4 * standard_errors).all()


def test_layers_and_steps_and_samples_are_dropped_independently():
    dropout = LayerDropout(num_layers=3, p_max=0.9)
    kept = [dropout.kept_rows(step, 9, first_row=0, num_rows=400)[2] for step in range(2)]
    both = len(set(kept[0]) & set(kept[1])) / 400
    assert both == pytest.approx(0.01, abs=0.02)


def test_dropout_does_not_depend_on_how_the_global_batch_is_split():
    dropout = LayerDropout(num_layers=4, p_max=0.5, seed=7)
    whole = dropout.kept_rows(5, 10, first_row=0, num_rows=8)
    parts = [dropout.kept_rows(5, 10, first_row=first, num_rows=2) for first in (0, 2, 4, 6)]
    joined = [
        [2 * part + row for part, kept in enumerate(parts) for row in kept[layer]]
        for layer in range(4)
    ]
    assert joined == whole


def test_the_seed_decides():
    draws = [LayerDropout(4, 0.5, seed=seed).kept_rows(0, 9, 0, 64) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


class Recorder(nn.Module):
    """Adds one and records its inputs."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, hidden_states, attention_mask=None, position_embeddings=None):
        self.seen.append((hidden_states, attention_mask, position_embeddings))
        return hidden_states + 1


def run(kept_rows, num_rows=3):
    layer = Recorder()
    install_layer_dropout(nn.ModuleList([layer]))
    hidden_states = torch.arange(num_rows * 2.0).view(num_rows, 2, 1)
    mask = torch.arange(num_rows).view(num_rows, 1, 1, 1)
    embeddings = (torch.arange(num_rows * 2).view(num_rows, 2), torch.zeros(1, 2))
    output = layer(
        hidden_states, attention_mask=mask, position_embeddings=embeddings, kept_rows=kept_rows
    )
    return hidden_states, output, layer.seen[0]


def test_a_dropped_row_passes_unchanged_and_is_not_computed():
    hidden_states, output, (seen, _, _) = run([[0, 2]])
    assert len(seen) == 2
    assert torch.equal(output[[0, 2]], hidden_states[[0, 2]] + 1)
    assert torch.equal(output[1], hidden_states[1])


def test_masks_and_positions_follow_their_rows():
    _, _, (_, mask, (cosines, shared)) = run([[0, 2]])
    assert mask.flatten().tolist() == [0, 2]
    assert cosines.tolist() == [[0, 1], [4, 5]]
    assert shared.shape == (1, 2)


@pytest.mark.parametrize("num_rows", [1, 3])
def test_a_layer_that_every_row_drops_computes_and_learns_nothing(num_rows):
    layer = nn.Linear(4, 4)
    install_layer_dropout(nn.ModuleList([layer]))
    hidden_states = torch.randn(num_rows, 2, 4, requires_grad=True)
    with torch.profiler.profile() as profile:
        output = layer(hidden_states, kept_rows=[[]])
    assert torch.equal(output, hidden_states)
    assert not [event.name for event in profile.events() if "addmm" in event.name]
    output.sum().backward()
    assert torch.equal(hidden_states.grad, torch.ones_like(hidden_states))
    assert not any(parameter.grad.any() for parameter in layer.parameters())
