"""Invariants after every step of any sequence of adds, aborts, endings and preemptions, with drafts
of any quality: each accepted position has its KV in all layers, nothing else was written, and no
exit state was used twice or by another request.

Memory that a step must not touch is compared bit by bit. The KV of accepted positions is compared
with a fresh prefill by stock vLLM. The tolerance is the difference between stock vLLM's own prefill
and decoding, times `SPREAD`, since products of few and of many rows may sum in different orders. If
stock vLLM shows no difference, none is allowed.
"""

import itertools

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)

from layerskip_vllm.scheduling.policy import Choice
from tests.engine import cycle_faults
from tests.engine.engines import close, make_self_llm, num_preemptions, random_prompts
from tests.engine.scripted_choices import choices_of
from tests.engine.stepped import SteppedEngine, batching_difference, known_sequences

K, NUM_BLOCKS, BLOCK_SIZE = 3, 12, 32
ONE_EXIT, THREE_EXITS = pytest.param(2, id="self:2"), pytest.param([1, 2, 3], id="self:auto")
MAX_TOKENS = 24
SPREAD = 4
"""Margin, since the tolerance is measured on other numbers than the compared ones."""

SCRIPT = st.lists(st.integers(0, K), min_size=1, max_size=4)
"""Number of right drafts in a step, request by request, repeated cyclically."""

CHOICES = st.lists(
    st.builds(Choice, st.integers(0, 2), st.integers(0, K), st.booleans()), min_size=1, max_size=4
)
"""Exit, K and kind of each step under `self:auto`, repeated cyclically."""

MAX_TOLERANCE = 1e-3
"""Keys and values are of the order of 1: missing KV or that of another token exceeds it by far."""


@pytest.fixture(scope="module")
def model(random_llama):
    return random_llama(num_layers=4, late_scale=0.3)


@pytest.fixture(scope="module")
def sequences(model):
    shared, *others = random_prompts([40, 5, 33, 70, 31], seed=11)
    prompts = [*others, shared + others[0], [*shared, 7]]
    return known_sequences(model, prompts, MAX_TOKENS + 2 * K)


@pytest.fixture(scope="module")
def kv_tolerance(model, sequences):
    return SPREAD * batching_difference(model, sequences)


def make_engine(model, exit_layer):
    """Has too little memory for all its requests, so that it preempts some."""
    return make_self_llm(
        model,
        exit_layer,
        K,
        max_model_len=128,
        max_num_seqs=6,
        max_num_batched_tokens=48,
        num_gpu_blocks_override=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
    )


@pytest.fixture
def engine(model, sequences, kv_tolerance, exit_layer):
    llm = make_engine(model, exit_layer)
    yield SteppedEngine(llm, sequences, exit_layer, kv_tolerance)
    close(llm)


class EngineSteps(RuleBasedStateMachine):
    """Random histories, all on one engine."""

    def __init__(self, engine: SteppedEngine) -> None:
        super().__init__()
        self.engine = engine

    @rule(sequence=st.integers(0, 5), max_tokens=st.integers(1, MAX_TOKENS))
    def add(self, sequence, max_tokens):
        self.engine.add(sequence, max_tokens)

    @precondition(lambda self: self.engine.live)
    @rule(scripts=st.lists(SCRIPT, min_size=1, max_size=6), choices=CHOICES)
    def step(self, scripts, choices):
        for num_right, choice in zip(scripts, itertools.cycle(choices), strict=False):
            self.engine.step(num_right, choice)

    @precondition(lambda self: self.engine.live)
    @rule(index=st.integers(0, 31))
    def abort(self, index):
        self.engine.abort(index)

    @rule()
    def preempt_all(self):
        self.engine.preempt_all()

    def teardown(self):
        self.engine.clear()


def test_float32_rounding_is_small(kv_tolerance):
    assert kv_tolerance < MAX_TOLERANCE


@pytest.mark.parametrize("exit_layer", [ONE_EXIT, THREE_EXITS])
def test_every_history_keeps_memory_and_exit_states_in_order(engine):
    run_state_machine_as_test(
        lambda: EngineSteps(engine),
        settings=settings(
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert engine.drafts.num_used > 0
    assert engine.num_finished > 0


def drive(engine: SteppedEngine) -> None:
    """A fixed history that contains every event."""
    for sequence in range(6):
        engine.add(sequence, MAX_TOKENS)
    for _ in range(22):  # slowly, until memory is too small for all
        engine.step([0])
    engine.abort(1)
    engine.preempt_all()
    for step in range(60):
        if engine.live:
            engine.step([K, step % (K + 1)])


@pytest.mark.on_v2
@pytest.mark.parametrize("exit_layer", [ONE_EXIT, THREE_EXITS])
def test_a_history_with_preemptions_and_all_kinds_of_drafts(
    model, sequences, kv_tolerance, exit_layer
):
    llm = make_engine(model, exit_layer)
    engine = SteppedEngine(llm, sequences, exit_layer, kv_tolerance)
    preempted_before = num_preemptions(llm)
    drive(engine)
    preempted = num_preemptions(llm) - preempted_before
    if isinstance(exit_layer, list):
        assert choices_of(llm).exits == set(range(len(exit_layer)))
    close(llm)
    assert engine.num_finished == 5
    assert engine.drafts.num_used > 0
    assert preempted > engine.num_forced_preemptions > 0


@pytest.mark.on_v2
@pytest.mark.parametrize(
    ("exit_layer", "fault"),
    [
        *itertools.product([2], cycle_faults.ALL),
        *itertools.product([[1, 2, 3]], cycle_faults.OF_SEVERAL_EXITS),
    ],
)
def test_a_fault_is_detected(engine, monkeypatch, fault):
    fault(monkeypatch, NUM_BLOCKS * BLOCK_SIZE)
    with pytest.raises(AssertionError):
        drive(engine)
