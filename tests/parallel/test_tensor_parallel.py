"""Two tensor-parallel workers give the output of one without speculation, token for token."""

import json

import pytest

from tests.engine.engines import (
    as_prompts,
    close,
    generate,
    greedy,
    make_llm,
    make_self_llm,
    random_prompts,
)
from tests.engine.seeded import seeded
from tests.parallel import ranks

EXITS = [1, 3, 4]
LENGTHS = [5, 17, 40, 3]
MAX_TOKENS = 40

UNTIED = {"num_layers": 6, "late_scale": 0.3}
TIED_ONE_KV_HEAD = UNTIED | {"tied": True, "num_kv_heads": 1}

pytestmark = pytest.mark.usefixtures("two_cores")


@pytest.fixture(scope="module")
def prompts():
    return as_prompts(random_prompts(LENGTHS))


@pytest.fixture(scope="module")
def plain_outputs(random_llama, prompts):
    """`plain_outputs(shape)` -> outputs of one worker without speculation."""
    known = {}

    def outputs(shape):
        key = tuple(sorted(shape.items()))
        if key not in known:
            llm = make_llm(random_llama(**shape))
            known[key] = generate(llm, prompts, greedy(MAX_TOKENS))
            close(llm)
        return known[key]

    return outputs


@pytest.fixture
def open_llm(random_llama):
    """`open_llm(shape, options, **arguments)` -> engine of two workers that record their drafts."""
    opened = []

    def open_llm(shape, options=None, exit_layer=3, **arguments):
        llm = make_self_llm(
            random_llama(**shape), exit_layer, 4, options, tensor_parallel_size=2, **arguments
        )
        opened.append(llm)
        llm.collective_rpc(ranks.record_drafts)
        return llm

    yield open_llm
    for llm in opened:
        close(llm)


def resumed_by_metrics(llm) -> int:
    name = "vllm:layerskip_num_resumed_tokens"
    return next(m.value for m in llm.get_metrics() if m.name == name)


def drafts_of_both_ranks(llm) -> list[list[list[int]]]:
    """Every propose step's drafts, which must be the same on both ranks."""
    first, second = llm.collective_rpc(ranks.drafts_of)
    assert first == second
    return first


@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        pytest.param(UNTIED, {}, id="untied head", marks=pytest.mark.on_v2),
        pytest.param(UNTIED, {"exit_layer": EXITS}, id="self:auto"),
        pytest.param(
            TIED_ONE_KV_HEAD,
            {"exit_layer": EXITS, "enforce_eager": False},
            id="self:auto, tied head, compiled",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            TIED_ONE_KV_HEAD,
            {},
            id="tied head, fewer KV heads than ranks",
            marks=pytest.mark.slow,
        ),
        pytest.param(UNTIED, {"enforce_eager": False}, id="compiled", marks=pytest.mark.slow),
        pytest.param(
            UNTIED,
            {"speculative_config": {"use_local_argmax_reduction": True}},
            id="local argmax",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_two_ranks_give_the_output_of_one(open_llm, plain_outputs, prompts, shape, arguments):
    expected = plain_outputs(shape)  # first, since a new engine takes over vLLM's counters
    llm = open_llm(shape, **arguments)
    before = resumed_by_metrics(llm)
    assert generate(llm, prompts, greedy(MAX_TOKENS)) == expected
    assert any(any(step) for step in drafts_of_both_ranks(llm))
    resumed = llm.collective_rpc(ranks.num_resumed_tokens)
    assert resumed[0] == resumed[1] == resumed_by_metrics(llm) - before > 0


def test_two_ranks_give_seeded_requests_the_output_of_one(open_llm, random_llama, prompts):
    params = [seeded(i, MAX_TOKENS) for i in range(len(prompts))]
    plain = make_llm(random_llama(**UNTIED))
    expected = generate(plain, prompts, params)
    close(plain)
    llm = open_llm(UNTIED)
    assert generate(llm, prompts, params) == expected
    assert any(any(step) for step in drafts_of_both_ranks(llm))


@pytest.mark.slow
@pytest.mark.parametrize("exit_layer", [3, EXITS], ids=["self:3", "self:auto"])
def test_ranks_sample_the_same_drafts(open_llm, plain_outputs, prompts, exit_layer):
    drawn = {"speculative_config": {"draft_sample_method": "probabilistic"}}
    llm = open_llm(TIED_ONE_KV_HEAD, exit_layer=exit_layer, **drawn)
    drawn = generate(llm, prompts, greedy(MAX_TOKENS, temperature=0.8, ignore_eos=True))
    assert [len(ids) for ids in drawn] == [MAX_TOKENS] * len(prompts)
    assert any(any(step) for step in drafts_of_both_ranks(llm))
    assert generate(llm, prompts, greedy(MAX_TOKENS)) == plain_outputs(TIED_ONE_KV_HEAD)


@pytest.mark.slow
def test_ranks_follow_the_schedulers_draft_length(open_llm, plain_outputs, prompts):
    expected = plain_outputs(UNTIED)
    by_batch_size = [[1, 2, 4], [3, 8, 1]]
    config = {"num_speculative_tokens_per_batch_size": by_batch_size}
    llm = open_llm(UNTIED, speculative_config=config)
    assert generate(llm, prompts, greedy(MAX_TOKENS)) == expected
    assert generate(llm, prompts[:2], greedy(MAX_TOKENS)) == expected[:2]
    lengths = [list(map(len, drafts)) for drafts in drafts_of_both_ranks(llm)]
    assert max(max(step) for step in lengths if len(step) > 2) == 1
    assert max(max(step) for step in lengths if len(step) <= 2) == 4


@pytest.mark.slow
def test_ranks_share_a_draft_vocabulary(open_llm, plain_outputs, prompts, tmp_path):
    """Most of its tokens are in the first rank's shard; the last rank's idle row drafts nothing."""
    counts = tmp_path / "counts.json"
    counts.write_text(json.dumps({str(i): 1000 - i for i in range(190)}))
    options = {"draft_vocab_size": 181, "draft_vocab_counts": str(counts)}
    llm = open_llm(UNTIED, options)
    assert generate(llm, prompts, greedy(MAX_TOKENS)) == plain_outputs(UNTIED)
    drafted = {token for step in drafts_of_both_ranks(llm) for drafts in step for token in drafts}
    assert drafted <= {*range(180), 256}
    assert max(drafted) > 160
