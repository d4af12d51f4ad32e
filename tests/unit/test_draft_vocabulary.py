"""The draft vocabulary is distributed over the tensor-parallel ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm.engine.arg_utils import EngineArgs

from layerskip_vllm.config import LayerSkipConfig
from layerskip_vllm.demo.models import PYTHON_10M
from layerskip_vllm.spec_decode.draft_vocabulary import deal, draft_token_ids


@given(st.sets(st.integers(0, 400), min_size=1), st.integers(1, 8))
def test_ranks_hold_equally_many_rows_and_gather_them_in_order(token_ids, tp_size):
    dealt = deal(np.array(sorted(token_ids)), tp_size)
    assert dealt.shape == (tp_size, -(-len(token_ids) // tp_size))
    gathered = dealt.flatten()
    assert gathered[: len(token_ids)].tolist() == sorted(token_ids)
    assert (gathered[len(token_ids) :] == -1).all()


def test_a_head_of_another_dtype_is_refused():
    model_config = EngineArgs(
        str(PYTHON_10M), dtype="bfloat16", hf_overrides={"head_dtype": "float32"}
    ).create_model_config()
    with pytest.raises(ValueError, match=r"draft_vocab_size=64 .* leave out head_dtype=.*float32"):
        draft_token_ids(LayerSkipConfig(4, 12, draft_vocab_size=64), model_config)
