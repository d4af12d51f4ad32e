"""Two ranks exchange as much as docs/cluster.md states, and less than with `draft_model`."""

import pytest

from benchmarks.collective_trace import AMONG_PROCESSES, OTHER_COLLECTIVES
from benchmarks.communication import LOCAL_ARGMAX, Communication, compared_systems, measure
from benchmarks.models import PreparedModel
from benchmarks.systems import System
from tests.engine.engines import random_prompts
from tests.models import first_layers

E, L, K = 2, 6, 4
HIDDEN_SIZE, VOCAB_SIZE = 128, 320
FLOAT32_BYTES = 4
NUM_CYCLES = 3
"""Verified cycles. The first drafts come with the prompt, before counting starts; none follows the
last token."""
NUM_PROPOSED = NUM_CYCLES - 1

pytestmark = pytest.mark.usefixtures("two_cores")


@pytest.fixture(scope="module")
def model(random_llama, tmp_path_factory):
    path = random_llama(num_layers=L, late_from=E, late_scale=0.0)
    cut_path = tmp_path_factory.mktemp("cut")
    first_layers(path, E).save_pretrained(cut_path)
    return PreparedModel(
        name="random",
        description="",
        path=path,
        cut_path=str(cut_path),
        dtype="float32",
        exit_layer=E,
        num_layers=L,
        weight_bytes=0,
        hidden_size=HIDDEN_SIZE,
        kv_cache_bytes=64 << 20,
        max_model_len=256,
        prompts=random_prompts([20, 20, 20]),
        max_tokens=1 + NUM_CYCLES * (K + 1),
    )


@pytest.fixture(scope="module")
def found(model):
    """`found(system, batch_size)` -> communication of decoding with all drafts accepted."""
    systems, known = compared_systems(model, K), {}

    def found(name, batch_size=1):
        if (name, batch_size) not in known:
            communication = measure(model, systems[name], batch_size)
            assert communication.tokens == batch_size * NUM_CYCLES * (K + 1)
            assert communication.acceptance_rate in (None, 1.0)
            known[name, batch_size] = communication
        return known[name, batch_size]

    return found


def gathered_bytes(communication: Communication) -> int:
    num_bytes = communication.trace.num_bytes
    return num_bytes["all_gather"] + num_bytes["gather"]


CALLS_EARLY, CALLS_REMAINING = 2 * E + 1, 2 * (L - E)


@pytest.mark.parametrize("batch_size", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_cycle_sends_what_the_docs_say(found, batch_size):
    trace = found("self", batch_size).trace
    num_early, num_remaining = NUM_PROPOSED * CALLS_EARLY, NUM_CYCLES * CALLS_REMAINING
    assert trace.num_calls["all_reduce"] == (K + 1) * num_early + num_remaining
    rows = batch_size * (K + 1) * (num_early + num_remaining)
    assert trace.num_bytes["all_reduce"] == FLOAT32_BYTES * HIDDEN_SIZE * rows
    logit_rows = batch_size * (NUM_PROPOSED * K + NUM_CYCLES * (K + 1))
    num_bytes = FLOAT32_BYTES * VOCAB_SIZE // 2 * logit_rows
    assert gathered_bytes(found("self", batch_size)) == num_bytes


def test_drafting_uses_no_other_collectives(found):
    calls = found("self").trace.num_calls
    assert [calls[name] for name in (*OTHER_COLLECTIVES, AMONG_PROCESSES)] == [0] * 6


@pytest.mark.slow
def test_choosing_the_draft_length_sends_nothing(model):
    systems = compared_systems(model, K)
    arguments = systems["self"].arguments | {"additional_config": {}}
    trace = measure(model, System("adaptive", "vllm", arguments), batch_size=1).trace
    assert [trace.num_calls[name] for name in (*OTHER_COLLECTIVES, AMONG_PROCESSES)] == [0] * 6


@pytest.mark.slow
def test_plain_decoding_sends_each_token_through_all_layers(found):
    trace, num_tokens = found("plain").trace, NUM_CYCLES * (K + 1)
    calls = num_tokens * (CALLS_EARLY + CALLS_REMAINING)
    assert trace.num_calls["all_reduce"] == calls
    assert trace.num_bytes["all_reduce"] == calls * FLOAT32_BYTES * HIDDEN_SIZE


@pytest.mark.slow
def test_local_argmax_sends_two_numbers_a_draft_instead_of_logits(found):
    saved_per_draft = FLOAT32_BYTES * (VOCAB_SIZE // 2 - 2)
    saved = gathered_bytes(found("self")) - gathered_bytes(found(LOCAL_ARGMAX))
    assert saved == NUM_PROPOSED * K * saved_per_draft


@pytest.mark.slow
def test_an_accepted_token_costs_fewer_bytes_than_with_a_draft_model(found):
    """At equal E, K and drafts; the exit query cache saves the bytes of the recomputed rows."""
    systems = ("self", "self-recompute", "draft_model")
    num_bytes = {name: found(name).trace.num_bytes["all_reduce"] for name in systems}
    row = FLOAT32_BYTES * HIDDEN_SIZE * CALLS_EARLY
    # Without the cache, verification recomputes K + 1 rows, and propose runs one row less.
    again = NUM_CYCLES * (K + 1) - NUM_PROPOSED
    assert num_bytes["self-recompute"] - num_bytes["self"] == again * row
    # vLLM also drafts after the last token, and feeds a draft model the verified tokens first.
    more = NUM_CYCLES * (K + 1 + K) - NUM_PROPOSED * K
    assert num_bytes["draft_model"] - num_bytes["self-recompute"] == more * row
