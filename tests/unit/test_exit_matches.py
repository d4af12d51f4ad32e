"""Counts of what exits would have drafted."""

import pytest
import torch

from layerskip_vllm.config import Exit
from layerskip_vllm.spec_decode.exit_matches import MAX_ROWS, ExitMatches, count_matches


def test_rows_without_an_emitted_token_count_for_no_exit():
    emitted = torch.tensor([5, 7, -1, 9])
    top_tokens = [torch.tensor(ids) for ids in ([5, 7, 3, 9], [5, 0, -1, 0], [0, 0, 0, 0])]
    assert count_matches(top_tokens, emitted).tolist() == [[3, 3], [3, 1], [3, 0]]


def test_no_rows():
    nothing = torch.zeros(0, dtype=torch.int64)
    assert count_matches([nothing], nothing).tolist() == [[0, 0]]


@pytest.mark.parametrize("has_adapters", [False, True])
def test_exits_draft_by_their_layer_and_head(has_adapters):
    """A draft is the state, or with the LM head its negative."""
    exits = [Exit(0), Exit(1), Exit(0, uses_lm_head=True)]
    matches = ExitMatches(
        lambda states, uses_lm_head: -states[:, 0] if uses_lm_head else states[:, 0],
        exits,
        has_adapters,
    )
    states = [torch.tensor([[1], [2], [3]]), torch.tensor([[1], [0], [0]])]
    assert matches.count(states, torch.tensor([1, 2, 4])).tolist() == [[3, 2], [3, 1], [3, 0]]


def test_a_large_step_is_counted_in_part_and_each_part_has_its_turn():
    num_rows = 3 * MAX_ROWS
    states = torch.arange(num_rows)[:, None]
    seen = []

    def top_tokens(states, _):
        seen.extend(states[:, 0].tolist())
        return states[:, 0]

    matches = ExitMatches(top_tokens, [Exit(0)])
    for _ in range(num_rows):
        counted = matches.count([states], torch.arange(num_rows))
        assert counted.tolist() == [[MAX_ROWS, MAX_ROWS]]
    assert set(seen) == set(range(num_rows))
