"""Rows get other adapters for a part of a step, and the step's own for the rest."""

from types import SimpleNamespace

import numpy as np
import pytest
from vllm.lora.request import LoRARequest

from layerskip_vllm.runner_v1.adapters import AdapterSwitchMixin
from layerskip_vllm.runner_v1.proposer import LayerSkipProposer

STEP = ((7, 7, 9), (7, 7, 7, 9, 0))
"""Adapters of a step's logits and tokens."""

ADAPTER = LoRARequest("an adapter", 7, "nowhere")


class Host:
    """The parts of vLLM's runner that take part."""

    def __init__(self, lora_config: object):
        self.lora_config = lora_config
        self.input_batch = SimpleNamespace(request_lora_mapping=np.array([7, 9, 0, 8]))
        self.calls = []

    def _set_active_loras(self, prompt, tokens, requests, mapping_type="language"):
        self.calls.append((tuple(map(int, prompt)), tuple(map(int, tokens)), requests))


class Runner(AdapterSwitchMixin, Host):
    pass


@pytest.fixture
def runner():
    runner = Runner(lora_config=object())
    runner._set_active_loras(*STEP, {ADAPTER}, "language")
    return runner


def test_rows_get_their_requests_adapters_and_the_steps_are_restored(runner):
    with runner.adapters_of(np.array([1, 2, 0, 0])):
        assert runner.calls[1:] == [((9, 0, 7, 7), (9, 0, 7, 7), set())]
    assert runner.calls == [
        (*STEP, {ADAPTER}),
        ((9, 0, 7, 7), (9, 0, 7, 7), set()),
        (*STEP, set()),
    ]


def test_a_failed_forward_restores_the_steps_adapters(runner):
    with pytest.raises(RuntimeError), runner.adapters_of(np.array([1])):
        raise RuntimeError
    assert runner.calls[-1] == (*STEP, set())


def test_without_lora_nothing_is_mapped():
    runner = Runner(lora_config=None)
    with runner.adapters_of(np.array([1])):
        pass
    assert runner.calls == []


@pytest.mark.parametrize(
    ("rows", "filled_up"), [([3, 1], [3, 1, 1, 1]), ([2, 0, 1, 3, 0], [2, 0, 1, 3, 0])]
)
def test_idle_rows_repeat_the_last_rows_adapter(rows, filled_up):
    drafter = SimpleNamespace(min_rows=4, adapters_of=lambda rows: rows.tolist())
    assert LayerSkipProposer._adapters_of(drafter, np.array(rows)) == filled_up
