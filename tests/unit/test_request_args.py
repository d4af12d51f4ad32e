"""A request's own limits on its drafts."""

import subprocess
import sys

import pytest

from layerskip_vllm.scheduling.request_options import max_drafts_of

K = 4


@pytest.mark.parametrize(
    ("extra_args", "expected"),
    [
        (None, K),
        ({}, K),
        ({"kv_transfer_params": {}}, K),
        ({"layerskip": True}, K),
        ({"layerskip": False}, 0),
        # Over HTTP, vLLM turns booleans into numbers.
        ({"layerskip": 1}, K),
        ({"layerskip": 0}, 0),
        ({"num_speculative_tokens": 0}, 0),
        ({"num_speculative_tokens": 3}, 3),
        ({"num_speculative_tokens": K}, K),
        ({"layerskip": True, "num_speculative_tokens": 2}, 2),
        ({"layerskip": False, "num_speculative_tokens": 2}, 0),
    ],
)
def test_a_request_caps_its_drafts(extra_args, expected):
    assert max_drafts_of(extra_args, K) == expected


@pytest.mark.parametrize("value", ["false", 2, -1, 0.0, 1.0, None, [0]])
def test_a_layerskip_that_is_neither_true_nor_false_is_named(value):
    with pytest.raises(ValueError, match="must be true or false; leave it out") as error:
        max_drafts_of({"layerskip": value}, K)
    assert str(error.value).startswith(f"layerskip={value!r} ")


@pytest.mark.parametrize("value", ["2", 5, -1, 2.0, True, None, [2]])
def test_a_number_of_drafts_out_of_range_is_named_with_the_range(value):
    with pytest.raises(ValueError, match=r"whole number in \[0, 4\]; leave it out for 4") as error:
        max_drafts_of({"num_speculative_tokens": value}, K)
    assert str(error.value).startswith(f"num_speculative_tokens={value!r} ")


def test_a_bad_number_is_refused_even_when_drafting_is_off():
    with pytest.raises(ValueError, match="num_speculative_tokens=9 must be"):
        max_drafts_of({"layerskip": False, "num_speculative_tokens": 9}, K)


def test_config_imports_no_vllm():
    code = "import sys, layerskip_vllm.config; sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
