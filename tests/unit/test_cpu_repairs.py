"""The repairs of vLLM's LoRA functions on CPU."""

import torch
from vllm.lora.ops.torch_ops import lora_ops

from layerskip_vllm.compat.worker.rows_without_adapter import expand_for_adapters


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
