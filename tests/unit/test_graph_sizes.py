"""For which batches runner V2 has graphs of drafts, at vLLM's own capture sizes."""

from types import SimpleNamespace

import pytest
from vllm.config.compilation import CUDAGraphMode
from vllm.v1.worker.gpu.cudagraph_utils import CudaGraphManager

from layerskip_vllm.runner_v2.graphs import VerifyGraphManager

SIZES = [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]


def manager(kind, max_num_seqs, num_drafts, num_exits=1, is_adaptive=True, schedule=None):
    """A manager that has laid out its graphs and captured none."""
    layerskip = SimpleNamespace(adaptive=is_adaptive, exits=range(num_exits))
    speculative = SimpleNamespace(
        layerskip=layerskip,
        num_speculative_tokens_per_batch_size=schedule,
        uses_dynamic_speculative_decoding=lambda: schedule is not None,
    )
    most = min(2 * max_num_seqs * (num_drafts + 1), SIZES[-1])
    sizes = [size for size in SIZES if size <= most]
    made = kind.__new__(kind)
    made.vllm_config = SimpleNamespace(
        speculative_config=speculative,
        num_speculative_tokens=num_drafts,
        cache_config=SimpleNamespace(use_kda_recoverssm=False),
    )
    made.compilation_config = SimpleNamespace(
        cudagraph_capture_sizes=sizes, max_cudagraph_capture_size=sizes[-1]
    )
    made.max_num_reqs, made.lora_capture_cases, made.ubatch_runner = max_num_seqs, [0], None
    made.decode_query_len, made.varlen_decode = num_drafts + 1, False
    made.cudagraph_mode = CUDAGraphMode.FULL_AND_PIECEWISE
    made._candidates, made._capture_descs = {}, {}
    made._init_candidates()
    return made


def full_for(made, num_reqs, num_drafts):
    """The graphs that serve a uniform batch, the first choice first."""
    num_tokens = num_reqs * (num_drafts + 1)
    return [
        desc
        for desc in made._candidates.get((num_tokens, 0), [])
        if desc.uniform_token_count == num_drafts + 1 and desc.num_reqs >= num_reqs
    ]


def of_vllm(made, num_drafts):
    """The largest batch of which vLLM would make a graph with so many drafts."""
    made.decode_query_len = num_drafts + 1
    made._candidates, made._capture_descs = {}, {}
    CudaGraphManager._init_candidates(made)
    descs = made._capture_descs[CUDAGraphMode.FULL]
    return max(desc.num_reqs for desc in descs)


@pytest.mark.parametrize("max_num_seqs", [1, 5, 16, 64, 256])
@pytest.mark.parametrize("most", [1, 4, 6])
def test_batches_with_drafts_are_padded_about_as_plain_ones_are(max_num_seqs, most):
    made = manager(VerifyGraphManager, max_num_seqs, most)
    captured = made._capture_descs[CUDAGraphMode.FULL]
    for num_drafts in range(1, most + 1):
        largest = of_vllm(manager(VerifyGraphManager, max_num_seqs, most), num_drafts)
        for num_reqs in range(1, largest + 1):
            desc = full_for(made, num_reqs, num_drafts)[0]
            assert desc in captured
            padded = next(size for size in SIZES if size >= num_reqs)
            assert num_reqs <= desc.num_reqs <= padded + 3


@pytest.mark.parametrize(
    ("max_num_seqs", "most", "num_exits", "expected"),
    [(16, 4, 1, 25), (64, 4, 1, 55), (256, 4, 1, 129), (64, 6, 4, 55), (256, 6, 4, 122)],
)
def test_how_many_graphs_verify_at_one_exit(max_num_seqs, most, num_exits, expected):
    """Plain decoding has 5 at 16 requests, 11 at 64 and 35 at 256; they are among these."""
    made = manager(VerifyGraphManager, max_num_seqs, most, num_exits)
    assert len(made._capture_descs[CUDAGraphMode.FULL]) == expected


def test_each_k_of_a_schedule_keeps_its_graphs():
    """vLLM makes those of all K at once then."""
    schedule = [(1, 4, 4), (5, 16, 2), (17, 64, 0)]
    made = manager(VerifyGraphManager, 64, 4, is_adaptive=False, schedule=schedule)
    captured = made._capture_descs[CUDAGraphMode.FULL]
    assert {desc.uniform_token_count for desc in captured} == {1, 3, 5}
    assert len(captured) == len(set(captured)) == 33
    for num_drafts in (2, 4):
        for num_reqs in range(1, 65):
            assert full_for(made, num_reqs, num_drafts)[0] in captured
