"""What the CUDA graphs of runner V2 capture is the same for other data: shown without a GPU."""

import pytest
import torch
from vllm.config.compilation import CUDAGraphMode

from tests import emulated_graphs
from tests.engine.engines import (
    as_prompts,
    close,
    generate,
    greedy,
    make_self_llm,
    random_prompts,
    runner,
)
from tests.recorded_operations import HostReads, recorded, without_interpreter

EXITS = [pytest.param(2, id="self:2"), pytest.param([1, 2, 3], id="self:auto")]

pytestmark = pytest.mark.runner_v2


@pytest.fixture(scope="module")
def model(random_llama):
    return random_llama(num_layers=4, num_heads=2, num_kv_heads=1, late_scale=0.3)


@pytest.fixture(scope="module", params=EXITS)
def records(model, request):
    """Operations of each replay of a run with prompts of several lengths, by graph."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        replays = emulated_graphs.emulate(monkeypatch, is_async=True)
        replays.records = {}
        llm = make_self_llm(model, request.param, 3, max_num_seqs=4)
        generate(llm, as_prompts(random_prompts([5, 17, 9])), greedy(14))
        if isinstance(request.param, list):
            generate(llm, as_prompts(random_prompts([7, 11])), greedy(20, ignore_eos=True))
        close(llm)
    return replays.records


def of_kind(records, is_propose):
    return {
        desc: replays
        for desc, replays in records.items()
        if hasattr(desc, "num_speculative_tokens") == is_propose and len(replays) > 1
    }


def exit_of(desc) -> int:
    return getattr(desc, "exit_index", 0)


@pytest.mark.parametrize("is_propose", [False, True], ids=["verify", "propose"])
def test_each_replay_does_the_same_at_the_same_addresses(records, is_propose):
    several = of_kind(records, is_propose)
    assert {exit_of(desc) for desc in several} == {exit_of(desc) for desc in records}
    for replays in several.values():
        for replay in replays[1:]:
            assert replay.record == replays[0].record


@pytest.mark.parametrize("is_propose", [False, True], ids=["verify", "propose"])
def test_nothing_is_read_on_the_host(records, is_propose):
    for replays in of_kind(records, is_propose).values():
        assert not [replay.unsafe for replay in replays if replay.unsafe]


@pytest.mark.parametrize(
    ("mode", "exit_layer"),
    [
        (CUDAGraphMode.FULL_DECODE_ONLY, 2),
        (CUDAGraphMode.NONE, 2),
        pytest.param(CUDAGraphMode.FULL_DECODE_ONLY, [1, 2, 3], marks=pytest.mark.slow),
        pytest.param(CUDAGraphMode.NONE, [1, 2, 3], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_step_waits_for_nothing_on_the_device(model, monkeypatch, mode, exit_layer):
    """With asynchronous scheduling, what runs of ours in a step reads no tensor on the host."""
    emulated_graphs.emulate(monkeypatch, mode, is_async=True)
    llm = make_self_llm(model, exit_layer, 3, max_num_seqs=4)
    its_runner, reads = runner(llm), []

    def watch(owner, name):
        watched = getattr(owner, name)

        def watching(batch, *args, **kwargs):
            hosts = filter(torch.is_tensor, [getattr(batch, "seq_lens_cpu_upper_bound", None)])
            with without_interpreter(), HostReads(hosts) as noted:
                result = watched(batch, *args, **kwargs)
            reads.append((name, noted.noted))
            return result

        monkeypatch.setattr(owner, name, watching)

    watch(its_runner, "gather_batch_req_state")
    watch(its_runner.model_state, "prepare_inputs")
    watch(its_runner.speculator, "propose")
    watch(its_runner._observer, "count")
    generate(llm, as_prompts(random_prompts([5, 17, 9])), greedy(14))
    close(llm)
    of_every_step = {"gather_batch_req_state", "prepare_inputs", "propose"}
    observing = {"count"} if isinstance(exit_layer, list) else set()
    assert {name for name, _ in reads} == of_every_step | observing
    assert not [(name, noted) for name, noted in reads if noted]


@pytest.mark.parametrize(
    ("region", "is_unsafe"),
    [
        (lambda data: torch.zeros(data.tolist()), True),
        (lambda data: data[data > 1], True),
        (lambda data: data + torch.tensor([1, 2]), True),
        (lambda data: data.add_(1) if data[0] > 2 else data, True),
        (lambda data: data.repeat(2).masked_fill_(data.repeat(2) > 1, 0), False),
    ],
    ids=["a shape from data", "a mask as index", "a host array", "a branch on data", "safe"],
)
def test_what_a_graph_cannot_do_is_noted(region, is_unsafe):
    data = torch.tensor([3, 2])
    with recorded() as operations:
        region(data)
    assert bool(operations.unsafe) == is_unsafe


def test_another_address_is_another_record():
    def double(data):
        with recorded() as operations:
            torch.add(data, data)
        return operations.record

    one, other = torch.ones(2), torch.ones(2)
    assert double(one) == double(one) != double(other)
