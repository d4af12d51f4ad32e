"""The early layers' attention metadata against an independent oracle.

xFormers' block-diagonal masks state which key a packed query may see; PyTorch's attention applies
them to keys and values laid out without any paging. vLLM's kernel must agree when it is given our
metadata for the fresh tokens, or for one draft step, over a paged cache with shuffled blocks.
"""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from vllm.forward_context import get_forward_context, set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.spec_decode.utils import PADDING_SLOT_ID
from xformers.ops.fmha.attn_bias import BlockDiagonalCausalFromBottomRightMask

from layerskip_vllm.spec_decode.plan import DraftPlan, DraftSchedule, ResumePlan
from tests.engine.engines import close, make_self_llm, runner

BLOCK_SIZE, MAX_BLOCKS, HEADS, KV_HEADS, HEAD_SIZE = 32, 5, 4, 2, 32
WINDOW = 48


@pytest.fixture(scope="module", params=[None, WINDOW], ids=["full", "sliding-window"])
def drafter(request, random_llama, random_model):
    heads = {"num_heads": HEADS, "num_kv_heads": KV_HEADS}
    window = request.param
    model = random_model(sliding_window=window, **heads) if window else random_llama(**heads)
    llm = make_self_llm(model, 2, 4)
    yield runner(llm).drafter
    close(llm)


@st.composite
def batches(draw):
    """(context length, scheduled tokens, resumed tokens) per request, and a seed."""
    reqs = []
    for _ in range(draw(st.integers(1, 6))):
        scheduled = draw(st.integers(1, 12))
        reqs.append((draw(st.integers(0, 120)), scheduled, draw(st.integers(0, min(scheduled, 4)))))
    return reqs, draw(st.integers(0, 2**32 - 1))


class PagedBatch:
    """Random keys and values of a batch, paged through a layer of the real engine and flat."""

    def __init__(self, drafter, seq_lens, seed):
        torch.manual_seed(seed)
        self.drafter = drafter
        self.layer_name = min(drafter._draft_attn_layer_names)
        self.layer = drafter.vllm_config.compilation_config.static_forward_context[self.layer_name]
        config = drafter.vllm_config.model_config.hf_config
        self.window = getattr(config, "sliding_window", None)
        self.seq_lens = torch.tensor(seq_lens, dtype=torch.int32)
        blocks = 1 + torch.randperm(MAX_BLOCKS * len(seq_lens))
        self.block_table = blocks.view(len(seq_lens), MAX_BLOCKS).to(torch.int32)
        self.keys = [torch.randn(n, KV_HEADS, HEAD_SIZE) for n in seq_lens]
        self.values = [torch.randn(n, KV_HEADS, HEAD_SIZE) for n in seq_lens]

    def common_metadata(self, query_lens) -> CommonAttentionMetadata:
        """What vLLM's runner builds where the last `query_lens` tokens of each request run."""
        starts = (self.seq_lens - torch.tensor(query_lens)).tolist()
        positions = torch.cat(
            [torch.arange(s, n) for s, n in zip(starts, self.seq_lens, strict=True)]
        )
        rows = torch.repeat_interleave(torch.arange(len(starts)), torch.tensor(query_lens))
        slots = (
            self.block_table[rows, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
        )
        start_loc = torch.tensor([0, *np.cumsum(query_lens)], dtype=torch.int32)
        return CommonAttentionMetadata(
            query_start_loc=start_loc,
            query_start_loc_cpu=start_loc,
            seq_lens=self.seq_lens,
            seq_lens_cpu_upper_bound=self.seq_lens,
            num_reqs=len(starts),
            num_actual_tokens=len(positions),
            max_query_len=max(query_lens),
            max_seq_len=int(self.seq_lens.max()),
            block_table_tensor=self.block_table,
            slot_mapping=slots.to(torch.int64),
            positions=positions,
            is_prefilling=torch.zeros(len(starts), dtype=torch.bool),
        )

    def write(self, upto) -> None:
        """Put the keys and values of positions [0, upto) into the paged cache."""
        full, self.seq_lens = self.seq_lens, torch.tensor(upto, dtype=torch.int32)
        metadata = self.drafter._early_attn_metadata(self.common_metadata(upto))[self.layer_name]
        self.seq_lens = full
        self.attention(metadata, torch.zeros(sum(upto), HEADS, HEAD_SIZE), [(0, n) for n in upto])

    def attention(self, metadata, queries, ranges) -> torch.Tensor:
        keys, values = (
            torch.cat([rows[a:b] for rows, (a, b) in zip(tensors, ranges, strict=True)])
            for tensors in (self.keys, self.values)
        )
        output = torch.zeros_like(queries)
        self.layer.impl.do_kv_cache_update(
            self.layer, keys, values, self.layer.kv_cache, metadata.slot_mapping
        )
        self.layer.impl.forward(
            self.layer, queries, keys, values, self.layer.kv_cache, metadata, output
        )
        return output

    def oracle(self, queries, rows, query_lens) -> torch.Tensor:
        """Dense attention of packed queries over packed keys under xFormers' mask."""
        mask = BlockDiagonalCausalFromBottomRightMask.from_seqlens(
            query_lens, [int(self.seq_lens[row]) for row in rows]
        )
        if self.window:
            mask = mask.make_local_attention_from_bottomright(self.window)
        keys, values = (
            torch.cat([tensors[row][: self.seq_lens[row]] for row in rows])
            for tensors in (self.keys, self.values)
        )
        group = HEADS // KV_HEADS
        return scaled_dot_product_attention(
            queries.transpose(0, 1),
            keys.repeat_interleave(group, dim=1).transpose(0, 1),
            values.repeat_interleave(group, dim=1).transpose(0, 1),
            attn_mask=mask.materialize((len(queries), len(keys))),
        ).transpose(0, 1)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches())
def test_fresh_tokens_see_what_the_block_diagonal_mask_allows(drafter, batch):
    reqs, seed = batch
    context, scheduled, resumed = map(np.array, zip(*reqs, strict=True))
    fresh = scheduled - resumed
    if not fresh.any():
        return
    paged = PagedBatch(drafter, (context + scheduled).tolist(), seed)
    if (context + resumed).any():
        written = context + resumed  # the draft wrote the early KV of the resumed tokens
        keep = np.flatnonzero(written)
        part = PagedBatch(drafter, written[keep].tolist(), seed)
        part.block_table = paged.block_table[keep]
        part.keys = [paged.keys[i] for i in keep]
        part.values = [paged.values[i] for i in keep]
        part.write(written[keep].tolist())

    plan = ResumePlan.from_schedule(scheduled, resumed, np.arange(len(reqs)), 4)
    common = paged.common_metadata(scheduled.tolist())
    with set_forward_context(
        {}, drafter.vllm_config, slot_mapping={"remaining": common.slot_mapping}
    ):
        drafter._enter_fresh_tokens(plan, common)
        context_now = get_forward_context()
        metadata = context_now.attn_metadata[paged.layer_name]
        slots = context_now.slot_mapping[paged.layer_name]
    assert torch.equal(metadata.slot_mapping, common.slot_mapping[plan.fresh_token_indices])
    assert torch.equal(slots[: plan.num_fresh_tokens], metadata.slot_mapping)
    assert len(slots) >= drafter.min_rows
    assert slots[plan.num_fresh_tokens :].eq(PADDING_SLOT_ID).all()  # idle rows write nowhere

    rows, query_lens = plan.fresh_rows.tolist(), fresh[fresh > 0].tolist()
    queries = torch.randn(plan.num_fresh_tokens, HEADS, HEAD_SIZE)
    ends = context + scheduled
    of_rows = PagedBatch.__new__(PagedBatch)
    of_rows.__dict__ = vars(paged) | {
        "keys": [paged.keys[r] for r in rows],
        "values": [paged.values[r] for r in rows],
    }
    actual = of_rows.attention(
        metadata, queries, [(ends[r] - n, ends[r]) for r, n in zip(rows, query_lens, strict=True)]
    )
    torch.testing.assert_close(
        actual, paged.oracle(queries, rows, query_lens), atol=2e-5, rtol=1e-4
    )


def draft_plan(schedule, block_table, num_idle_rows=0) -> DraftPlan:
    num_rows = len(block_table) + num_idle_rows
    return DraftPlan.from_schedule(schedule, num_rows, block_table, BLOCK_SIZE, PADDING_SLOT_ID)


@contextmanager
def draft_step(drafter, step, plan, block_table):
    """The forward context of one draft step."""
    with set_forward_context(None, drafter.vllm_config):
        drafter._enter_draft_step(step, plan, block_table)
        yield get_forward_context()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 120), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_each_draft_step_sees_all_before_it_and_itself(drafter, context, seed):
    num_steps = 4
    paged = PagedBatch(drafter, [n + num_steps for n in context], seed)
    paged.write(context)
    rows = np.arange(len(context))
    schedule = DraftSchedule(rows, np.array(context), rows, np.full(len(rows), num_steps))
    plan = draft_plan(schedule, paged.block_table)
    for step, positions in enumerate(plan.positions):
        with draft_step(drafter, step, plan, paged.block_table) as context_now:
            metadata = context_now.attn_metadata[paged.layer_name]
        assert positions.tolist() == [n + step for n in context]
        paged.seq_lens = (positions + 1).to(torch.int32)
        queries = torch.randn(len(context), HEADS, HEAD_SIZE)
        actual = paged.attention(metadata, queries, [(p, p + 1) for p in positions])
        expected = paged.oracle(queries, rows.tolist(), [1] * len(rows))
        torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


def test_a_request_that_has_all_its_drafts_writes_nowhere(drafter):
    paged = PagedBatch(drafter, [9, 9], seed=0)
    schedule = DraftSchedule(*map(np.array, ([0, 1], [3, 4], [0, 0], [4, 2])))
    plan = draft_plan(schedule, paged.block_table)
    slots = []
    for step in range(4):
        with draft_step(drafter, step, plan, paged.block_table) as context_now:
            slots.append(context_now.slot_mapping[paged.layer_name].tolist())
    first = (paged.block_table[:, 0] * BLOCK_SIZE).tolist()
    assert plan.positions.tolist() == [[3, 4], [4, 5], [5, 5], [6, 5]]
    assert [row[0] - first[0] for row in slots] == [3, 4, 5, 6]
    assert [row[1] for row in slots] == [first[1] + 4, first[1] + 5, -1, -1]


def test_idle_rows_write_nowhere_and_are_no_requests(drafter):
    paged = PagedBatch(drafter, [9, 9], seed=0)
    schedule = DraftSchedule(*map(np.array, ([0, 1], [3, 4], [0, 0], [4, 4])))
    plan = draft_plan(schedule, paged.block_table, num_idle_rows=3)
    with draft_step(drafter, 1, plan, paged.block_table) as context_now:
        metadata = context_now.attn_metadata[paged.layer_name]
        slots = context_now.slot_mapping[paged.layer_name]
    assert slots[2:].tolist() == [PADDING_SLOT_ID] * 3
    assert metadata.num_actual_tokens == len(metadata.seq_lens) == 2
    assert torch.equal(metadata.slot_mapping, slots[:2])
