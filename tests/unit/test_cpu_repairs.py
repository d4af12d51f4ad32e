"""The repair of vLLM's CPU sampler."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from layerskip_vllm.worker.cpu import _expand_batch_to_tokens


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.7, 1.0, 2.0]), st.integers(0, 4)), min_size=1),
    st.sampled_from([torch.float32, torch.int32, torch.int64]),
)
def test_each_draft_token_gets_its_requests_parameter(requests, dtype):
    values, counts = zip(*requests, strict=True)
    x = torch.tensor(values).to(dtype)
    cu_num_tokens = torch.tensor(counts).cumsum(0).to(torch.int32)
    expected = [
        1 if value == 0 else value
        for value, count in zip(x.tolist(), counts, strict=True)
        for _ in range(count)
    ]
    actual = _expand_batch_to_tokens(None, x, cu_num_tokens, sum(counts), 0, 1)
    assert actual.dtype == dtype
    assert actual.tolist() == expected
