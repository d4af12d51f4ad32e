"""The key `layerskip` of `config.json`: written whole, checked, ignored by loaders."""

import json
import os
import stat

import pytest
from transformers import AutoConfig, AutoModelForCausalLM
from vllm.config import ModelConfig

from layerskip_vllm.checkpoint import settings as settings_module
from layerskip_vllm.checkpoint.settings import (
    CheckpointSettings,
    parse_settings,
    read_settings,
    write_settings,
)

SETTINGS = CheckpointSettings(
    exit_layers=(2, 1), num_speculative_tokens=4, acceptance_rate=(0.75, 0.5), draft_vocab_size=128
)
VALUE = {
    "exit_layers": [2, 1],
    "num_speculative_tokens": 4,
    "acceptance_rate": [0.75, 0.5],
    "draft_vocab_size": 128,
}
CONFIG = {"vocab_size": 320, "rms_norm_eps": 1e-05, "num_hidden_layers": 4, "auto_map": {"b": 1}}


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    return tmp_path


def test_settings_are_read_as_they_were_written(checkpoint):
    assert read_settings(checkpoint) is None
    write_settings(checkpoint, SETTINGS)
    assert read_settings(checkpoint) == SETTINGS
    assert json.loads((checkpoint / "config.json").read_text())["layerskip"] == VALUE


def test_unknown_settings_are_left_out(checkpoint):
    write_settings(checkpoint, CheckpointSettings(exit_layers=(3,)))
    written = json.loads((checkpoint / "config.json").read_text())["layerskip"]
    assert written == {"exit_layers": [3]}


def test_the_rest_of_the_file_keeps_its_bytes(checkpoint):
    file = checkpoint / "config.json"
    before = file.read_text()
    file.chmod(0o640)
    write_settings(checkpoint, SETTINGS)
    after = file.read_text()
    assert after.startswith(before.removesuffix("\n}\n") + ',\n  "layerskip": {\n')
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    write_settings(checkpoint, None)
    assert file.read_text() == before


def test_a_second_write_replaces_the_first_in_its_place(checkpoint):
    file = checkpoint / "config.json"
    file.write_text(json.dumps({"layerskip": VALUE, "num_hidden_layers": 4, "name": "Zoë"}))
    write_settings(checkpoint, CheckpointSettings(exit_layers=(1,)))
    assert list(json.loads(file.read_text())) == ["layerskip", "num_hidden_layers", "name"]


def test_a_failed_write_leaves_the_old_file_alone(checkpoint, monkeypatch):
    before = (checkpoint / "config.json").read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(settings_module.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_settings(checkpoint, SETTINGS)
    assert (checkpoint / "config.json").read_bytes() == before
    assert os.listdir(checkpoint) == ["config.json"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"exit_layers": [4]},
            "exit_layers=[4] must be a list of different whole numbers in [1, 3]",
        ),
        ({"exit_layers": [0]}, "exit_layers=[0] must"),
        ({"exit_layers": []}, "exit_layers=[] must"),
        ({"exit_layers": None}, "exit_layers=None must"),
        ({"exit_layers": 2}, "exit_layers=2 must"),
        ({"exit_layers": "21"}, "exit_layers='21' must"),
        ({"exit_layers": [2, 2]}, "exit_layers=[2, 2] must"),
        ({"exit_layers": [True, 2]}, "exit_layers=[True, 2] must"),
        (
            {"num_speculative_tokens": 129},
            "num_speculative_tokens=129 must be a whole number in [1, 128]",
        ),
        ({"num_speculative_tokens": 2.0}, "num_speculative_tokens=2.0 must"),
        (
            {"acceptance_rate": [0.5]},
            "acceptance_rate=[0.5] must be a list of 2 numbers in [0, 1], one per exit layer",
        ),
        ({"acceptance_rate": [0.5, 1.1]}, "acceptance_rate=[0.5, 1.1] must"),
        ({"acceptance_rate": [0.5, float("nan")]}, "acceptance_rate=[0.5, nan] must"),
        ({"acceptance_rate": 0.5}, "acceptance_rate=0.5 must"),
        ({"draft_vocab_size": 0}, "draft_vocab_size=0 must be a whole number of at least 1"),
    ],
)
def test_a_bad_setting_is_named_with_its_file_and_range(checkpoint, changes, message):
    file = checkpoint / "config.json"
    file.write_text(json.dumps(CONFIG | {"layerskip": VALUE | changes}))
    with pytest.raises(ValueError, match=r"config\.json: layerskip") as error:
        read_settings(checkpoint)
    assert f"{file}: layerskip.{message}" in str(error.value)


@pytest.mark.parametrize("value", [None, [2], "self:2"])
def test_a_value_that_is_no_object_is_refused(value):
    with pytest.raises(ValueError, match="must be an object such as"):
        parse_settings(value, 4, "config.json")


def test_settings_that_do_not_fit_the_checkpoint_are_not_written(checkpoint):
    before = (checkpoint / "config.json").read_bytes()
    with pytest.raises(ValueError, match=r"exit_layers=\[4\] must"):
        write_settings(checkpoint, CheckpointSettings(exit_layers=(4,)))
    assert (checkpoint / "config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not JSON"), ("[]", "must hold a JSON obj")]
)
def test_a_broken_config_is_named(checkpoint, text, message):
    (checkpoint / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        write_settings(checkpoint, SETTINGS)
    assert (checkpoint / "config.json").read_text() == text


def test_the_depth_of_a_nested_text_model_counts(checkpoint):
    config = {"text_config": {"num_hidden_layers": 4}, "layerskip": VALUE | {"exit_layers": [4, 1]}}
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"in \[1, 3\]"):
        read_settings(checkpoint)


def test_keys_of_later_releases_are_ignored():
    assert parse_settings(VALUE | {"later": 1}, 4, "config.json") == SETTINGS


def test_vllm_and_transformers_load_a_config_with_the_key(random_llama, tmp_path):
    source = AutoModelForCausalLM.from_pretrained(random_llama(num_layers=4))
    source.save_pretrained(tmp_path)
    write_settings(tmp_path, SETTINGS)
    assert AutoConfig.from_pretrained(tmp_path).layerskip == VALUE
    AutoModelForCausalLM.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert read_settings(tmp_path / "again") == SETTINGS
    hf_config = ModelConfig(str(tmp_path), skip_tokenizer_init=True).hf_config
    assert parse_settings(hf_config.layerskip, 4, "config.json") == SETTINGS
