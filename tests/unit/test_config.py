"""`self:E`, early exit, their ranges and the option names."""

import subprocess
import sys

import pytest

from layerskip_vllm.config import (
    LayerSkipConfig,
    check_early_exit,
    is_self_model,
    parse_exit_layer,
)


@pytest.mark.parametrize(
    "model", ["self:", "self:x", "self:0", "self:-1", "self:1.5", "self: 8", "self:+2", "self:²"]
)
def test_a_malformed_exit_layer_is_named(model):
    with pytest.raises(ValueError, match="whole number of at least 1, for example self:8") as error:
        parse_exit_layer(model)
    assert repr(model) in str(error.value)


def test_a_well_formed_exit_layer_is_read():
    assert parse_exit_layer("self:12") == 12
    assert is_self_model("self:12")
    assert not is_self_model("meta-llama/self:12")
    assert not is_self_model(None)


@pytest.mark.parametrize("exit_layer", [0, 16, 17])
def test_an_exit_layer_out_of_range_is_named_with_the_range(exit_layer):
    with pytest.raises(
        ValueError, match=rf"exit_layer={exit_layer} must be in \[1, 15\] for a 16-layer target"
    ):
        LayerSkipConfig(exit_layer, 16)


@pytest.mark.parametrize("early_exit", [1, 31, 32])
def test_an_early_exit_may_be_at_any_layer(early_exit):
    assert check_early_exit(early_exit, 32) == early_exit


@pytest.mark.parametrize("early_exit", [-1, 0, 33, 40])
def test_an_early_exit_out_of_range_is_named_with_the_range(early_exit):
    with pytest.raises(
        ValueError, match=rf"early_exit={early_exit} must be in \[1, 32\] for a 32-layer model"
    ):
        check_early_exit(early_exit, 32)


@pytest.mark.parametrize("early_exit", [True, "8", 8.0, None, [8]])
def test_an_early_exit_that_is_not_a_whole_number_is_named(early_exit):
    with pytest.raises(ValueError, match="must be a whole number, for example 8") as error:
        check_early_exit(early_exit, 32)
    assert f"early_exit={early_exit!r} " in str(error.value)


def test_break_even_follows_the_cost_model():
    config = LayerSkipConfig(exit_layer=6, num_layers=24)
    for num_drafts in (1, 4, 9):
        cost = (num_drafts * config.exit_layer + config.num_layers) / config.num_layers
        assert 1 + num_drafts * config.break_even_acceptance_rate == pytest.approx(cost)


@pytest.mark.parametrize(("share", "expected"), [(1.0, (4 + 4) / 20), (0.25, (4 + 1) / 20)])
def test_break_even_counts_the_lm_head(share, expected):
    config = LayerSkipConfig(4, 16, head_layers=4.0, draft_vocab_share=share)
    assert config.break_even_acceptance_rate == expected


def test_config_draft_batch_and_policy_import_no_vllm():
    modules = ", ".join(
        f"layerskip_vllm.{name}"
        for name in ("config", "models", "spec_decode.draft_batch", "scheduling.policy")
    )
    code = f"import sys, {modules}; sys.exit('vllm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
