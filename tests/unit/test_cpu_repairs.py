"""The repairs of vLLM's sampler and LoRA functions on CPU."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm.lora.ops.torch_ops import lora_ops

from layerskip_vllm.compat.worker.draft_sampling_params import expand_batch_to_tokens
from layerskip_vllm.compat.worker.rows_without_adapter import expand_for_adapters


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
    actual = expand_batch_to_tokens(None, x, cu_num_tokens, sum(counts), 0, 1)
    assert actual.dtype == dtype
    assert actual.tolist() == expected


def test_only_rows_with_an_adapter_change():
    torch.manual_seed(0)
    buffers, adapters = torch.randn(4, 2), torch.randn(3, 1, 5, 2)
    before, indices = torch.randn(4, 5), torch.tensor([2, -1, 0, -1])
    after = before.clone()
    expand_for_adapters(lora_ops.bgmv_expand, buffers, adapters, after, indices, add_inputs=True)
    for row, index in enumerate(indices):
        added = adapters[index, 0] @ buffers[row] if index >= 0 else torch.zeros(5)
        torch.testing.assert_close(after[row], before[row] + added)
    assert torch.equal(after[1::2], before[1::2])


def test_a_slice_of_the_output_is_repaired_too():
    buffers, adapters = torch.ones(2, 1), torch.ones(1, 1, 3, 1)
    output, indices = torch.zeros(2, 6), torch.tensor([-1, 0])
    expand_for_adapters(lora_ops.bgmv_expand_slice, buffers, adapters, output, indices, 2, 3)
    assert output.tolist() == [[0] * 6, [0, 0, 1, 1, 1, 0]]
