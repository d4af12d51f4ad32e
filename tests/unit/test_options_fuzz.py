"""Any option value is accepted or refused with a message: no other exception escapes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerskip_vllm.config import (
    AUTO_MODEL,
    LayerSkipConfig,
    check_early_exit,
    check_num_speculative_tokens,
    check_option_names,
    is_self_model,
    option_names,
    parse_exit_layer,
)
from tests.fuzz import JSON, is_accepted

OPTIONS = st.dictionaries(st.sampled_from(option_names()) | st.text(max_size=10), JSON, max_size=5)


@given(
    st.text() | st.integers().map(str) | st.sampled_from(["1" * 5000, "\u0663", "1\n", " 1", "+1"])
)
def test_an_exit_layer_is_a_whole_number_or_refused(text):
    model = f"self:{text}"
    assert is_self_model(model)
    if model != AUTO_MODEL and is_accepted(parse_exit_layer, model):
        assert str(int(text)) == text.lstrip("0")
        assert parse_exit_layer(model) >= 1


@given(st.integers(-1, 8), OPTIONS)
def test_options_give_a_configuration_or_an_error(exit_layer, options):
    if is_accepted(LayerSkipConfig.from_options, exit_layer, 6, options):
        config = LayerSkipConfig.from_options(exit_layer, 6, options)
        assert 1 <= config.exit_layer < 6
        assert options.keys() <= set(option_names())
        assert isinstance(config.adaptive, bool)


@given(JSON)
def test_any_json_as_options(value):
    is_accepted(check_option_names, value)


@given(JSON)
def test_any_json_as_a_number(value):
    if is_accepted(check_num_speculative_tokens, value):
        assert 1 <= value <= 128
    if is_accepted(check_early_exit, value, 6):
        assert 1 <= value <= 6


@given(JSON)
def test_any_json_as_a_schedule_by_batch_size(value):
    from layerskip_vllm.vllm_config.self_speculation import _num_speculative_tokens_of

    is_accepted(_num_speculative_tokens_of, {"num_speculative_tokens_per_batch_size": value})


@given(st.dictionaries(st.integers(-1, 12).map(str) | st.text(max_size=5), JSON, max_size=4) | JSON)
def test_any_json_as_token_counts(tmp_path_factory, value):
    from layerskip_vllm.spec_decode.draft_vocabulary import read_counts

    path = tmp_path_factory.mktemp("counts") / "counts.json"
    path.write_text(json.dumps(value))
    is_accepted(read_counts, path, 10)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"{", b"", b'{"1": 1}' * 2])
def test_invalid_json_as_token_counts(tmp_path, content):
    from layerskip_vllm.spec_decode.draft_vocabulary import read_counts

    path = tmp_path / "counts.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected a JSON object"):
        read_counts(path, 10)
