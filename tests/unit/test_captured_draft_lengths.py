"""For which K runner V2 captures CUDA graphs."""

from types import SimpleNamespace

import pytest

from layerskip_vllm.spec_decode.draft_lengths import captured_draft_lengths


@pytest.mark.parametrize(
    ("most", "is_adaptive", "num_exits", "schedule", "expected"),
    [
        (4, True, 1, [(1, 1, 4)], [4, 3, 2, 1]),
        (4, False, 1, [(1, 1, 4)], [4]),
        (4, False, 1, [(1, 4, 4), (5, 16, 2), (17, 64, 0)], [4, 2]),
        # vLLM drops the schedule for several ranks.
        (12, True, 1, None, [12, 8, 7, 6, 5, 4, 3, 2, 1]),
        (1, True, 1, [(1, 1, 1)], [1]),
        (6, True, 3, [(1, 1, 6)], [6, 4, 2, 1]),
        (20, True, 2, [(1, 1, 20), (2, 4, 3)], [20, 8, 4, 3, 2, 1]),
        (6, False, 3, None, [6]),
    ],
)
def test_graphs_are_captured_for_the_drafts_that_a_step_may_have(
    most, is_adaptive, num_exits, schedule, expected
):
    speculative_config = SimpleNamespace(
        layerskip=SimpleNamespace(adaptive=is_adaptive, exits=range(num_exits)),
        num_speculative_tokens_per_batch_size=schedule,
    )
    config = SimpleNamespace(num_speculative_tokens=most, speculative_config=speculative_config)
    assert captured_draft_lengths(config) == expected
