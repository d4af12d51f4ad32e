"""`self:auto` as configuration: its first choice and the source of that; errors that name it."""

import json
import shutil

import pytest
from vllm.engine.arg_utils import EngineArgs

from layerskip_vllm.config import DEFAULT_AUTO_TOKENS, DEFAULT_NUM_SPECULATIVE_TOKENS
from layerskip_vllm.vllm_config import self_speculation

AUTO = {"spec_model": "self:auto"}


def speculative_config(model: str, **flags):
    args = EngineArgs(model, max_model_len=64, **(AUTO | flags))
    return args.create_engine_config().speculative_config


@pytest.fixture(scope="module")
def deep(random_llama):
    return random_llama(num_layers=12)


@pytest.fixture
def knowing(deep, tmp_path):
    """`knowing(value)` -> the model with that `layerskip` key in its config.json."""

    def path(value: object) -> str:
        shutil.copytree(deep, tmp_path / "model")
        file = tmp_path / "model" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"layerskip": value}))
        return str(tmp_path / "model")

    return path


@pytest.fixture
def log(monkeypatch):
    """Our lines at INFO."""
    lines: list[str] = []
    monkeypatch.setattr(self_speculation.logger, "info", lambda text, *a: lines.append(text % a))
    return lines


def test_without_knowledge_the_depth_decides(deep, log):
    config = speculative_config(deep)
    assert config.layerskip.exit_layers == (2, 4, 6)
    assert config.layerskip.exit_layer == 4
    assert config.num_speculative_tokens == DEFAULT_AUTO_TOKENS
    (line,) = log
    assert line.startswith(
        "LayerSkip: self:auto: the first 4 of 12 layers, chosen by the model's depth, and later 2 "
        "or 6 where they are faster, draft K=8 tokens"
    )
    assert "model='self:auto'" in repr(config)


def test_a_checkpoint_says_what_it_knows(knowing, log):
    model = knowing(
        {"exit_layers": [3, 5], "num_speculative_tokens": 6, "acceptance_rate": [0.7, 0.8]}
    )
    config = speculative_config(model)
    assert config.layerskip.exit_layers == (3, 5)
    assert config.num_speculative_tokens == 6
    (line,) = log
    assert "the first 3 of 12 layers, chosen by the checkpoint's config.json, and later 5" in line
    assert "draft K=6" in line


def test_the_users_values_come_first(knowing):
    model = knowing({"exit_layers": [3, 5], "num_speculative_tokens": 6})
    assert speculative_config(model, spec_tokens=2).num_speculative_tokens == 2
    named = {"additional_config": {"layerskip": {"exit_layers": [7]}}}
    assert speculative_config(model, **named).layerskip.exit_layers == (7,)
    schedule = {"num_speculative_tokens_per_batch_size": [[1, 8, 3]]}
    assert speculative_config(model, speculative_config=schedule).num_speculative_tokens == 3


def test_self_e_ignores_what_the_checkpoint_knows(knowing):
    model = knowing({"exit_layers": "broken", "num_speculative_tokens": 6})
    config = speculative_config(model, spec_model="self:9")
    assert config.layerskip.exit_layers == (9,)
    assert config.num_speculative_tokens == DEFAULT_NUM_SPECULATIVE_TOKENS


def test_speculative_config_may_name_the_model(deep):
    args = EngineArgs(deep, max_model_len=64, speculative_config={"model": "self:auto"})
    assert args.create_engine_config().speculative_config.layerskip.is_auto


def test_the_heads_cost_is_known_in_layers(deep, tmp_path):
    """320 rows of 128 numbers; a layer has 4 + 2 heads of 32 numbers each way, and 3 x 384 rows."""
    layer = 128 * (2 * 4 * 32 + 2 * 2 * 32 + 3 * 384)
    for spec_model in ("self:auto", "self:4"):
        layerskip = speculative_config(deep, spec_model=spec_model).layerskip
        assert layerskip.head_layers == pytest.approx(320 * 128 / layer)
        assert layerskip.exit_head_layers[0] == layerskip.head_layers
    (tmp_path / "counts.json").write_text('{"1": 1}')
    counts = str(tmp_path / "counts.json")
    options = {"layerskip": {"draft_vocab_size": 80, "draft_vocab_counts": counts}}
    part = speculative_config(deep, spec_model="self:4", additional_config=options).layerskip
    assert part.exit_head_layers == pytest.approx([part.head_layers / 4])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"spec_model": "self:autos"}, "'self:autos': expected self:E.*or self:auto"),
        ({"exit_layers": [12]}, r"exit_layers=\[12\] must be a list of 1 to 3 .* in \[1, 11\]"),
        ({"exit_layers": [0]}, r"exit_layers=\[0\] must be"),
        ({"exit_layers": []}, r"exit_layers=\[\] must be"),
        ({"exit_layers": [4, 4]}, r"exit_layers=\[4, 4\] must be .* different"),
        ({"exit_layers": [1, 2, 3, 4]}, r"exit_layers=\[1, 2, 3, 4\] must be a list of 1 to 3"),
        (
            {"exit_layers": [4], "spec_model": "self:3"},
            r"exit_layers=\[4\] has no effect with self:3",
        ),
        ({"early_exit": 3}, "early_exit=3 cannot be combined with self:auto"),
        ({"exit_layer": 3}, "unknown key.*: exit_layer; known keys: .*exit_layers"),
        ({"is_auto": True}, "unknown key.*: is_auto"),
    ],
    ids=str,
)
def test_bad_values_are_named(deep, flags, message):
    settings = {key: value for key, value in flags.items() if key == "spec_model"}
    options = {key: value for key, value in flags.items() if key not in settings}
    with pytest.raises(ValueError, match=f"(?s){message}"):
        speculative_config(deep, additional_config={"layerskip": options}, **settings)


def test_exits_need_self_speculation(deep):
    options = {"layerskip": {"exit_layers": [4]}}
    args = EngineArgs(deep, max_model_len=64, additional_config=options)
    with pytest.raises(ValueError, match="has no effect without self-speculation"):
        args.create_engine_config()


@pytest.mark.parametrize("value", [7, [4], {}, {"exit_layers": [99]}, {"exit_layers": 4}], ids=str)
def test_a_broken_key_in_the_checkpoint_is_named(knowing, value):
    with pytest.raises(ValueError, match=r"checkpoint's config.json: layerskip.* must be "):
        speculative_config(knowing(value))
