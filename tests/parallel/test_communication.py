"""What two ranks send each other: as docs/cluster.md says, and less than `draft_model` does."""

import pytest

from benchmarks.communication import LOCAL_ARGMAX, Communication, compared_systems, measure
from benchmarks.models import PreparedModel
from tests.engine.engines import random_prompts
from tests.models import first_layers

E, L, K = 2, 6, 4
HIDDEN_SIZE, VOCAB_SIZE = 128, 320
FLOAT32_BYTES = 4
NUM_CYCLES = 3

pytestmark = pytest.mark.usefixtures("two_cores")


@pytest.fixture(scope="module")
def found(random_llama, tmp_path_factory):
    """`found(system)` -> what one request's decoding takes, of whose drafts all are accepted."""
    path = random_llama(num_layers=L, late_from=E, late_scale=0.0)
    cut_path = tmp_path_factory.mktemp("cut")
    first_layers(path, E).save_pretrained(cut_path)
    model = PreparedModel(
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
        prompts=random_prompts([20]),
        max_tokens=1 + NUM_CYCLES * (K + 1),
    )
    systems, known = compared_systems(model, K), {}

    def found(name):
        if name not in known:
            known[name] = measure(model, systems[name], batch_size=1)
            assert known[name].tokens == NUM_CYCLES * (K + 1)
        return known[name]

    return found


def gathered_bytes(communication: Communication) -> int:
    num_bytes = communication.traffic.num_bytes
    return num_bytes["all_gather"] + num_bytes["gather"]


def test_a_cycle_sends_what_the_page_says(found):
    calls_early, calls_remaining = 2 * E + 1, 2 * (L - E)
    rows = (K + 1) * calls_early + (K + 1) * calls_remaining
    calls = (K + 1) * calls_early + calls_remaining
    traffic = found("self").traffic
    assert traffic.num_calls["all_reduce"] == NUM_CYCLES * calls
    num_bytes = FLOAT32_BYTES * HIDDEN_SIZE * rows
    assert traffic.num_bytes["all_reduce"] == NUM_CYCLES * num_bytes
    logit_rows = K + (K + 1)
    num_bytes = FLOAT32_BYTES * VOCAB_SIZE // 2 * logit_rows
    assert gathered_bytes(found("self")) == NUM_CYCLES * num_bytes


def test_local_argmax_sends_two_numbers_a_draft_instead_of_logits(found):
    of_a_draft = FLOAT32_BYTES * (VOCAB_SIZE // 2 - 2)
    saved = gathered_bytes(found("self")) - gathered_bytes(found(LOCAL_ARGMAX))
    assert saved == NUM_CYCLES * K * of_a_draft


def test_an_accepted_token_costs_fewer_bytes_than_with_a_draft_model(found):
    """At equal E, K and drafts, and by what the exit query cache spares fewer than without it."""
    accepted = {name: found(name) for name in ("self", "self-recompute", "draft_model")}
    assert [c.acceptance_rate for c in accepted.values()] == [1.0, 1.0, 1.0]
    num_bytes = {name: c.traffic.num_bytes["all_reduce"] for name, c in accepted.items()}
    spared = FLOAT32_BYTES * HIDDEN_SIZE * (2 * E + 1) * K
    assert num_bytes["self-recompute"] - num_bytes["self"] == NUM_CYCLES * spared
    assert num_bytes["self-recompute"] < num_bytes["draft_model"]
