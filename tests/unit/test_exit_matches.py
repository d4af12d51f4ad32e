"""Counts of what exits would have drafted."""

import torch

from layerskip_vllm.spec_decode.exit_matches import count_matches


def test_rows_without_an_emitted_token_count_for_no_exit():
    emitted = torch.tensor([5, 7, -1, 9])
    top_tokens = [torch.tensor(ids) for ids in ([5, 7, 3, 9], [5, 0, -1, 0], [0, 0, 0, 0])]
    assert count_matches(top_tokens, emitted).tolist() == [[3, 3], [3, 1], [3, 0]]


def test_no_rows():
    nothing = torch.zeros(0, dtype=torch.int64)
    assert count_matches([nothing], nothing).tolist() == [[0, 0]]
