"""Which of vLLM's model runners `self:E` uses."""

from types import SimpleNamespace

import pytest

from layerskip_vllm.vllm_config import runner


@pytest.mark.parametrize(
    ("variable", "is_cuda", "has_triton", "lora", "expected"),
    [
        (None, True, True, False, True),
        (None, True, True, True, False),  # what only V1 has
        (None, True, False, False, False),
        (None, False, True, False, False),  # V1 is faster on CPUs
        ("0", True, True, False, False),
        ("1", False, True, False, True),
        ("1", True, True, True, True),  # then refused
    ],
)
def test_the_variable_decides_then_the_device_and_the_features(
    monkeypatch, variable, is_cuda, has_triton, lora, expected
):
    if variable is None:
        monkeypatch.delenv("VLLM_USE_V2_MODEL_RUNNER", raising=False)
    else:
        monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", variable)
    monkeypatch.setattr(runner, "HAS_TRITON", has_triton)
    monkeypatch.setattr(runner, "current_platform", SimpleNamespace(is_cuda=lambda: is_cuda))
    assert runner.uses_runner_v2(SimpleNamespace(enable_lora=lora)) is expected
