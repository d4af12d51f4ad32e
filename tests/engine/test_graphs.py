"""Runner V2 with CUDA graphs, emulated: the output is plain decoding's, and the graphs are ours."""

import itertools
import json
from collections import Counter

import pytest
from vllm.config.compilation import CUDAGraphMode
from vllm.forward_context import get_forward_context
from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from layerskip_vllm.measure.engine import scheduler
from layerskip_vllm.runner_v2.graphs import ProposeDescriptor, VerifyDescriptor
from layerskip_vllm.scheduling.policy import Choice
from tests import emulated_graphs
from tests.engine.engines import (
    as_prompts,
    assert_speculated,
    close,
    counts,
    generate,
    generate_plainly,
    greedy,
    make_auto_llm,
    make_self_llm,
    random_prompts,
    runner,
)
from tests.engine.scripted_choices import ScriptedChoices

pytestmark = pytest.mark.runner_v2

EXIT_LAYER, NUM_DRAFTS = 2, 3
PROMPTS = as_prompts(random_prompts([5, 17, 9]))
SMALL = {"max_num_seqs": 4, "kv_cache_memory_bytes": 4 << 20}


@pytest.fixture(scope="module")
def model(random_llama):
    """A model whose drafts are accepted about half of the time."""
    return random_llama(num_layers=4, num_heads=2, num_kv_heads=1, late_scale=0.3)


@pytest.fixture(scope="module")
def plain(model):
    """Plain decoding without graphs, and with vLLM's own attention for CPUs."""
    return generate_plainly(model, PROMPTS, greedy(14))


def start(model, options=None, **overrides):
    return make_self_llm(model, EXIT_LAYER, NUM_DRAFTS, options, **(SMALL | overrides))


def decode(llm, params=None):
    """Outputs and counts of one run."""
    before = counts(llm)
    outputs = generate(llm, PROMPTS, params or greedy(14))
    return outputs, counts(llm).since(before)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_cycle_is_two_graphs(model, plain, monkeypatch, is_async):
    replays = emulated_graphs.emulate(monkeypatch, is_async=is_async)
    llm = start(model)
    assert isinstance(scheduler(llm), AsyncScheduler) == is_async
    outputs, counted = decode(llm)
    close(llm)
    assert outputs == plain
    assert_speculated(counted)
    assert replays.verify_lengths() == {NUM_DRAFTS + 1}
    assert replays.draft_lengths() == {NUM_DRAFTS}


def test_each_draft_length_has_its_graphs(model, plain, monkeypatch):
    replays = emulated_graphs.emulate(monkeypatch, is_async=True)
    llm = start(model, {"adaptive": True})
    lengths = itertools.cycle([3, 0, 1, 2])
    policy, observed = scheduler(llm).policy, []
    policy.choose = lambda limits: Choice(0, min(next(lengths), max(limits, default=0)))
    policy.observe_step = lambda *args: observed.append([c[:2] for c in args[1:3]])
    outputs, counted = decode(llm)
    close(llm)
    # A step's tokens come before its drafts: each time is that of one K, whatever comes next.
    assert {verified for (_, verified), _ in observed} == {0, 1, 2, 3}
    assert all(verified == proposed for verified, proposed in observed)
    assert outputs == plain
    assert_speculated(counted)
    assert replays.verify_lengths() == {1, 2, 3, 4}
    assert replays.draft_lengths() == {1, 2, 3}


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_each_exit_has_its_graphs(model, plain, monkeypatch, is_async):
    replays = emulated_graphs.emulate(monkeypatch, is_async=is_async)
    llm = make_auto_llm(model, [1, 2, 3], NUM_DRAFTS, **SMALL)
    choices = ScriptedChoices(llm, 3, NUM_DRAFTS)
    outputs, counted = decode(llm)
    more, _ = decode(llm)
    close(llm)
    assert outputs == more == plain
    assert_speculated(counted)
    assert choices.observed
    exits = {(type(desc), getattr(desc, "exit_index", 0)) for desc in replays}
    assert {(VerifyDescriptor, 1), (VerifyDescriptor, 2)} < exits
    assert {(ProposeDescriptor, 1), (ProposeDescriptor, 2)} < exits
    assert {index for _, index in exits} == {0, 1, 2}


@pytest.mark.slow
def test_unequal_limits_resume_without_a_graph(model, plain, monkeypatch):
    replays = emulated_graphs.emulate(monkeypatch)
    llm = start(model)
    limits = [{"num_speculative_tokens": limit} for limit in (1, 2, 3)]
    outputs, counted = decode(llm, [greedy(14, extra_args=limit) for limit in limits])
    close(llm)
    assert outputs == plain
    assert_speculated(counted)
    assert replays.draft_lengths() == {NUM_DRAFTS}


def test_without_exit_states_no_graph_resumes(model, plain, monkeypatch):
    replays = emulated_graphs.emulate(monkeypatch)
    llm = start(model)
    state = runner(llm).model_state
    monkeypatch.setattr(state, "set_exit_states", lambda *_: state.num_exit_states.fill(0))
    outputs, counted = decode(llm)
    close(llm)
    assert outputs == plain
    assert counted.num_accepted > 0
    assert counted.num_resumed == 0
    assert not replays.verify_lengths()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "options"),
    [(CUDAGraphMode.FULL, {}), (CUDAGraphMode.FULL_DECODE_ONLY, {"exit_query_cache": False})],
    ids=["graphs of mixed batches", "no exit query cache"],
)
def test_graphs_of_the_full_forward(model, plain, monkeypatch, mode, options):
    replays = emulated_graphs.emulate(monkeypatch, mode)
    llm = start(model, options)
    outputs, counted = decode(llm)
    close(llm)
    assert outputs == plain
    assert counted.num_accepted > 0
    assert counted.num_resumed == 0
    assert replays.verify_lengths()


@pytest.mark.parametrize(
    "exit_layer", [EXIT_LAYER, pytest.param([1, 2, 3], id="self:auto", marks=pytest.mark.slow)]
)
def test_piecewise_graphs_run_the_full_forward_and_nothing_else(
    model, plain, monkeypatch, exit_layer
):
    """Their key is the forward context's descriptor: early layers on a row a request, or remaining
    layers alone, would replay the graph of another batch, silently.
    """
    replays = emulated_graphs.emulate(monkeypatch, CUDAGraphMode.FULL_AND_PIECEWISE)
    llm = make_self_llm(model, exit_layer, NUM_DRAFTS, max_num_batched_tokens=16, **SMALL)
    its_model, modes = runner(llm).model, set()
    run_early_layers = its_model.run_early_layers

    def noting_the_mode(*args, **kwargs):
        modes.add(get_forward_context().cudagraph_runtime_mode)
        return run_early_layers(*args, **kwargs)

    monkeypatch.setattr(its_model, "run_early_layers", noting_the_mode)
    limit = {"num_speculative_tokens": 1}  # decodes of unequal length, for which no FULL graph is
    outputs, counted = decode(llm, [greedy(14), greedy(14), greedy(14, extra_args=limit)])
    close(llm)
    assert outputs == plain
    assert counted.num_accepted > 0
    assert len(replays.piecewise) > 3
    for descriptor, inputs in replays.piecewise:
        assert not {"exit_state", "observe"}.intersection(inputs)
        assert len(inputs["input_ids"]) == len(inputs["positions"]) == descriptor.num_tokens
    assert modes == {CUDAGraphMode.NONE}


@pytest.mark.slow
def test_drafts_of_a_restricted_vocabulary(model, plain, monkeypatch, tmp_path):
    draft_counts = tmp_path / "counts.json"
    draft_counts.write_text(json.dumps(dict.fromkeys(range(0, 320, 2), 1)))
    replays = emulated_graphs.emulate(monkeypatch)
    llm = start(model, {"draft_vocab_size": 200, "draft_vocab_counts": str(draft_counts)})
    outputs, counted = decode(llm)
    close(llm)
    assert outputs == plain
    assert_speculated(counted)
    assert NUM_DRAFTS + 1 in replays.verify_lengths()


def test_what_is_captured_is_bounded(model, monkeypatch):
    emulated_graphs.emulate(monkeypatch)
    llm = make_self_llm(model, EXIT_LAYER, 20, {"adaptive": True}, **SMALL)
    its_runner = runner(llm)
    verify, propose = its_runner.cudagraph_manager.graphs, its_runner.speculator.graphs.graphs
    close(llm)
    assert {desc.num_speculative_tokens for desc in propose} == {*range(1, 9), 20}
    assert {desc.uniform_token_count for desc in verify} == {1, *range(2, 10)}
    sizes = len(emulated_graphs.CAPTURE_SIZES)
    assert len(verify) <= 10 * sizes
    assert len(propose) <= 9 * sizes


def test_each_exit_captures_as_many_graphs_as_the_first(model, monkeypatch):
    """But plain decoding, which is the same for all."""
    emulated_graphs.emulate(monkeypatch)
    llm = make_self_llm(model, [1, 2, 3], NUM_DRAFTS, **SMALL)
    its_runner = runner(llm)
    verify, propose = its_runner.cudagraph_manager.graphs, its_runner.speculator.graphs.graphs
    close(llm)
    of_verify = Counter(getattr(desc, "exit_index", 0) for desc in verify)
    of_propose = Counter(getattr(desc, "exit_index", 0) for desc in propose)
    num_plain = sum(desc.uniform_token_count == 1 for desc in verify)
    assert of_verify[0] - num_plain == of_verify[1] == of_verify[2] > 0
    assert of_propose[0] == of_propose[1] == of_propose[2] > 0
