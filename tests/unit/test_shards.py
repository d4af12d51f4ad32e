"""What tensor-parallel ranks hold, and what they agree on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerskip_vllm.spec_decode.draft_vocabulary import shard_layout
from layerskip_vllm.version import __version__
from layerskip_vllm.worker import host_identity as module
from layerskip_vllm.worker.host_identity import host_identity
from layerskip_vllm.worker.runner import require_same_version


@given(st.data(), st.integers(1, 4), st.integers(1, 9))
def test_each_rank_holds_the_tokens_of_its_shard_in_order(data, tp_size, shard_size):
    tokens = st.integers(0, tp_size * shard_size - 1)
    token_ids = sorted(data.draw(st.sets(tokens, min_size=1)))
    layout = shard_layout(np.array(token_ids), shard_size, tp_size)
    held = [row[row >= 0].tolist() for row in layout]
    assert held == [
        [t for t in token_ids if rank * shard_size <= t < (rank + 1) * shard_size]
        for rank in range(tp_size)
    ]
    assert layout.shape == (tp_size, max(map(len, held)))
    # Idle rows come last.
    assert all((np.diff((row >= 0).astype(int)) <= 0).all() for row in layout)


def test_the_host_is_told_by_its_boot_and_its_shared_memory(monkeypatch, tmp_path):
    here = host_identity()
    assert here == host_identity()
    assert "/" not in here  # it becomes part of a shared-memory segment's name
    monkeypatch.setattr(module, "SHARED_MEMORY", tmp_path)  # as in another container
    elsewhere = host_identity()
    assert elsewhere != here
    assert elsewhere.rpartition("-")[0] == here.rpartition("-")[0]


def test_a_worker_of_another_version_is_refused_with_both_named():
    require_same_version(__version__)
    with pytest.raises(RuntimeError, match=rf"has layerskip_vllm {__version__}.*has 9\.9\.9"):
        require_same_version("9.9.9")
