"""The exits of `self:auto`: from the option, the checkpoint, a published shape or the depth."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerskip_vllm.config import AUTO_MODEL, LayerSkipConfig, is_self_model, parse_exit_layer
from layerskip_vllm.vllm_config.exit_candidates import (
    PUBLISHED,
    ModelShape,
    check_exit_layers,
    find_candidates,
    of_depth,
)
from tests.fuzz import JSON, is_accepted

SHAPE = ModelShape(num_layers=16, hidden_size=64, vocab_size=320)


def test_the_model_is_recognized():
    assert is_self_model(AUTO_MODEL)
    assert parse_exit_layer(AUTO_MODEL) is None


@pytest.mark.parametrize("model", ["self:autos", "self:AUTO", "self:auto ", "self:auto:4"])
def test_a_model_that_is_nearly_auto_is_named(model):
    with pytest.raises(ValueError, match=r"expected self:E.*or self:auto") as error:
        parse_exit_layer(model)
    assert repr(model) in str(error.value)


def test_the_option_comes_first():
    found = find_candidates({"exit_layers": [9, 3]}, {"exit_layers": [5]}, SHAPE)
    assert (found.exit_layers, found.first) == ((3, 9), 3)


def test_the_checkpoint_comes_second():
    checkpoint = {
        "exit_layers": [5, 9, 2, 7],
        "num_speculative_tokens": 7,
        "acceptance_rate": [0.8, 0.9, 0.7, 0.85],
        "of a later version": 1,
    }
    found = find_candidates({}, checkpoint, next(iter(PUBLISHED)))
    assert (found.exit_layers, found.first, found.num_speculative_tokens) == ((2, 5, 9), 5, 7)
    assert "config.json" in found.source


@pytest.mark.parametrize("shape", PUBLISHED, ids=lambda shape: "-".join(map(str, shape)))
def test_a_published_shape_starts_with_its_exit(shape):
    found = find_candidates({}, None, shape)
    assert (found.first, found.num_speculative_tokens) == PUBLISHED[shape]
    assert found.first in found.exit_layers
    assert check_exit_layers(found.exit_layers, shape.num_layers, "") == found.exit_layers


@pytest.mark.parametrize(
    ("num_layers", "exit_layers", "first"),
    [
        (2, (1,), 1),
        (3, (1, 2), 1),
        (4, (1, 2), 1),
        (6, (1, 2, 3), 2),
        (16, (3, 5, 8), 5),
        (30, (6, 10, 15), 10),
        (80, (16, 27, 40), 27),
    ],
)
def test_depth_gives_a_fifth_a_third_and_a_half(num_layers, exit_layers, first):
    found = find_candidates({}, None, SHAPE._replace(num_layers=num_layers))
    assert (found.exit_layers, found.first) == (exit_layers, first)
    assert found.num_speculative_tokens is None


@given(st.integers(2, 200))
def test_any_depth_has_valid_exits(num_layers):
    exit_layers = of_depth(num_layers)
    assert check_exit_layers(exit_layers, num_layers, "") == exit_layers


def test_one_layer_cannot_be_cut():
    with pytest.raises(ValueError, match="self:auto needs a target of at least 2 layers"):
        find_candidates({}, None, SHAPE._replace(num_layers=1))


BAD_EXITS = [[], [0], [16], [-1, 3], [3, 3], [1, 2, 3, 4], [True], [2.0], ["2"], 4, "4", None, {}]


@pytest.mark.parametrize("value", BAD_EXITS, ids=repr)
def test_bad_exits_are_named_with_the_range(value):
    with pytest.raises(ValueError, match=r"1 to 3 different whole numbers in \[1, 15\]") as error:
        find_candidates({"exit_layers": value}, None, SHAPE)
    assert f"layerskip.exit_layers={value!r} " in str(error.value)


@pytest.mark.parametrize("value", [{}, [4], 4, "x", {"exit_layer": 4}], ids=repr)
def test_a_broken_key_of_the_checkpoint_is_named_with_the_remedy(value):
    message = "checkpoint's config.json: layerskip.* must be "
    with pytest.raises(ValueError, match=message) as error:
        find_candidates({}, value, SHAPE)
    assert "mend it, or set layerskip.exit_layers" in str(error.value)
    assert find_candidates({"exit_layers": [4]}, value, SHAPE).exit_layers == (4,)


@pytest.mark.parametrize("num_tokens", [0, 129, "4", True])
def test_a_bad_draft_length_of_the_checkpoint_is_named(num_tokens):
    checkpoint = {"exit_layers": [4], "num_speculative_tokens": num_tokens}
    with pytest.raises(
        ValueError, match=r"config.json: layerskip.num_speculative_tokens=.* \[1, 128\]"
    ):
        find_candidates({}, checkpoint, SHAPE)


@given(JSON)
def test_any_json_gives_candidates_or_an_error(value):
    for arguments in (({"exit_layers": value}, None), ({}, value), ({}, {"exit_layers": value})):
        if is_accepted(find_candidates, *arguments, SHAPE):
            found = find_candidates(*arguments, SHAPE)
            LayerSkipConfig.from_options(found.first, 16, {}, found.exit_layers)


def test_self_e_is_the_case_of_one_exit():
    config = LayerSkipConfig.from_options(4, 16, {})
    assert (config.exit_layers, config.exit_index, config.model) == ((4,), 0, "self:4")
    auto = LayerSkipConfig.from_options(4, 16, {"exit_layers": [8, 4]}, (4, 8))
    assert (auto.exit_layers, auto.exit_index, auto.model) == ((4, 8), 0, "self:auto")


def test_self_e_refuses_exits():
    message = (
        r"layerskip.exit_layers=\[4\] has no effect with self:8.*--speculative-model self:auto"
    )
    with pytest.raises(ValueError, match=message):
        LayerSkipConfig.from_options(8, 16, {"exit_layers": [4]})
