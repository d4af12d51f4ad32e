"""The early layers' attention metadata against an independent oracle.

xFormers' block-diagonal masks define which keys each packed query attends to; PyTorch's attention
applies them to unpaged keys and values. vLLM's kernel must agree over a cache with shuffled blocks,
with our metadata for an early step and vLLM's own for a verify batch.
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

from layerskip_vllm.spec_decode.draft_batch import DraftBatch, DraftSteps
from tests.engine.engines import close, make_self_llm, runner

BLOCK_SIZE, MAX_BLOCKS, HEADS, KV_HEADS, HEAD_SIZE = 32, 5, 4, 2, 32
pytestmark = pytest.mark.runner_v1
"""The tests build batches of V1's drafter. V2 uses vLLM's own metadata in verify and in propose."""

WINDOW = 48


@pytest.fixture(scope="module", params=[None, WINDOW], ids=["full", "sliding-window"])
def drafter(request, random_llama, random_model):
    heads = {"num_heads": HEADS, "num_kv_heads": KV_HEADS}
    window = request.param
    model = random_model(sliding_window=window, **heads) if window else random_llama(**heads)
    llm = make_self_llm(model, 2, 4)
    yield runner(llm).drafter
    close(llm)


class PagedBatch:
    """Random keys and values of a batch, both flat and paged in a layer of the real engine."""

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
        """What vLLM's runner builds if the last `query_lens` tokens of each request run."""
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


@st.composite
def batches(draw):
    """(context length, scheduled tokens) per request, and a seed."""
    lengths = st.tuples(st.integers(0, 120), st.integers(1, 12))
    return draw(st.lists(lengths, min_size=1, max_size=6)), draw(st.integers(0, 2**32 - 1))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches())
def test_verified_tokens_attend_as_the_block_diagonal_mask_allows(drafter, batch):
    reqs, seed = batch
    context, scheduled = map(np.array, zip(*reqs, strict=True))
    ends = (context + scheduled).tolist()
    paged = PagedBatch(drafter, ends, seed)
    paged.write(ends)
    rows, query_lens = list(range(len(reqs))), scheduled.tolist()
    metadata = drafter._early_attn_metadata(paged.common_metadata(query_lens))[paged.layer_name]
    queries = torch.randn(sum(query_lens), HEADS, HEAD_SIZE)
    ranges = [(end - n, end) for end, n in zip(ends, query_lens, strict=True)]
    actual = paged.attention(metadata, queries, ranges)
    torch.testing.assert_close(
        actual, paged.oracle(queries, rows, query_lens), atol=2e-5, rtol=1e-4
    )


def draft_steps(start_positions, num_drafts, block_table, num_idle_rows=0) -> DraftSteps:
    rows = np.arange(len(block_table))
    starts, most = np.array(start_positions), np.array(num_drafts)
    return DraftSteps.of_batch(
        DraftBatch([f"r{row}" for row in rows], rows, starts, rows, most),
        block_table,
        num_rows=len(block_table) + num_idle_rows,
        block_size=BLOCK_SIZE,
        padding_slot=PADDING_SLOT_ID,
        with_last_draft=True,
    )


@contextmanager
def early_step(drafter, step, steps, block_table):
    """The forward context of one early step."""
    with set_forward_context(None, drafter.vllm_config):
        drafter._enter_draft_step(step, steps, block_table)
        yield get_forward_context()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.integers(1, 120), st.integers(1, 3)), min_size=1, max_size=6),
    st.integers(0, 2**32 - 1),
)
def test_each_early_step_attends_to_itself_and_all_before_it(drafter, reqs, seed):
    reqs = sorted(reqs, key=lambda req: -req[1])
    context, num_drafts = map(list, zip(*reqs, strict=True))
    paged = PagedBatch(drafter, [n + k + 1 for n, k in reqs], seed)
    paged.write(context)
    steps = draft_steps(context, num_drafts, paged.block_table)
    assert len(steps) == num_drafts[0] + 1
    for step, num_reqs in enumerate(steps.num_reqs):
        with early_step(drafter, step, steps, paged.block_table) as context_now:
            metadata = context_now.attn_metadata[paged.layer_name]
        positions = steps.positions[step, :num_reqs]
        assert positions.tolist() == [n + step for n in context[:num_reqs]]
        paged.seq_lens = (positions + 1).to(torch.int32)
        queries = torch.randn(num_reqs, HEADS, HEAD_SIZE)
        whole = paged.keys, paged.values
        paged.keys, paged.values = (tensors[:num_reqs] for tensors in whole)
        actual = paged.attention(metadata, queries, [(p, p + 1) for p in positions])
        expected = paged.oracle(queries, list(range(num_reqs)), [1] * num_reqs)
        paged.keys, paged.values = whole
        torch.testing.assert_close(actual, expected, atol=2e-5, rtol=1e-4)


def test_a_request_that_has_all_its_drafts_leaves_the_batch(drafter):
    paged = PagedBatch(drafter, [9, 9], seed=0)
    steps = draft_steps([3, 4], [3, 1], paged.block_table, drafter.min_rows - 2)
    slots = []
    for step in range(4):
        with early_step(drafter, step, steps, paged.block_table) as context_now:
            slots.append(context_now.slot_mapping[paged.layer_name].tolist())
    first = (paged.block_table[:, 0] * BLOCK_SIZE).tolist()
    least = drafter.min_rows
    assert [row[0] - first[0] for row in slots] == [3, 4, 5, 6]
    assert [row[1] for row in slots if len(row) > 1][:2] == [first[1] + 4, first[1] + 5]
    assert all(len(row) == max(n, least) for row, n in zip(slots, [2, 2, 1, 1], strict=True))
    assert all(row[1:] == [PADDING_SLOT_ID] * (least - 1) for row in slots[2:])


def test_idle_rows_write_nothing_and_are_not_requests(drafter):
    paged = PagedBatch(drafter, [9, 9], seed=0)
    steps = draft_steps([3, 4], [4, 4], paged.block_table, drafter.min_rows - 2)
    with early_step(drafter, 1, steps, paged.block_table) as context_now:
        metadata = context_now.attn_metadata[paged.layer_name]
        slots = context_now.slot_mapping[paged.layer_name]
    assert drafter.min_rows > 2
    assert slots[2:].tolist() == [PADDING_SLOT_ID] * (drafter.min_rows - 2)
    assert metadata.num_actual_tokens == len(metadata.seq_lens) == 2
    assert torch.equal(metadata.slot_mapping, slots[:2])
