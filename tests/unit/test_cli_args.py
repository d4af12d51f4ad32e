"""`--early-exit` ends up in `--additional-config`, in either order."""

import json

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.utils.argparse_utils import FlexibleArgumentParser

from layerskip_vllm import plugin

EXIT_8 = {"layerskip": {"early_exit": 8}}


def additional_config(*flags: str) -> dict:
    plugin.register()
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    return parser.parse_args(list(flags)).additional_config


def options(value: object) -> tuple[str, str]:
    return "--additional-config", json.dumps(value)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--early-exit", "8"], EXIT_8),
        (["--early_exit=8"], EXIT_8),
        (["--additional-config.layerskip.early_exit", "8"], EXIT_8),
        (["--early-exit", "8", *options({"a": 1})], {"a": 1} | EXIT_8),
        ([*options({"a": 1}), "--early-exit", "8"], {"a": 1} | EXIT_8),
        (["--early-exit", "8", "--additional-config.a", "1"], {"a": 1} | EXIT_8),
        (["--early-exit", "8", *options(EXIT_8)], EXIT_8),
        (["--early-exit", "4", "--early-exit", "8"], EXIT_8),
        ([*options({"a": 1}), "--early-exit", "8", *options({"b": 2})], {"b": 2} | EXIT_8),
        (
            ["--early-exit", "8", *options({"layerskip": {"exit_query_cache": True}})],
            {"layerskip": {"early_exit": 8, "exit_query_cache": True}},
        ),
        ([*options({"a": 1}), *options({"b": 2})], {"b": 2}),
        ([], {}),
    ],
    ids=" ".join,
)
def test_early_exit_is_an_additional_option(flags, expected):
    assert additional_config(*flags) == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {"layerskip": {"early_exit": 4}, "a": 1}),
        (["--early-exit", "8"], EXIT_8 | {"a": 1}),
    ],
    ids=["from the file", "command line over file"],
)
def test_a_config_file_may_set_early_exit(tmp_path, flags, expected):
    file = tmp_path / "engine.yaml"
    file.write_text("early-exit: 4\nadditional-config:\n  a: 1\n")
    assert additional_config("--config", str(file), *flags) == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--early-exit", "x"], "early_exit='x' must be a whole number, for example 8"),
        (["--early-exit", "2.5"], "early_exit='2.5' must be a whole number"),
        (["--early-exit", "0"], "early_exit=0 must be at least 1"),
        (["--early-exit", "-3"], "early_exit=-3 must be at least 1"),
        (
            ["--early-exit", "4", *options(EXIT_8)],
            "--early-exit 4 contradicts --additional-config, which sets layerskip.early_exit=8",
        ),
        ([*options(EXIT_8), "--early-exit", "4"], "--early-exit 4 contradicts --additional-config"),
        ([*options([8]), "--early-exit", "4"], "--additional-config [8] must be an object"),
        ([*options({"layerskip": 8}), "--early-exit", "4"], "=8 must be an object"),
        ([*options({"layerskip": {"x": 8}}), "--early-exit", "4"], "known keys: exit_query_cache"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_invalid_values_are_command_line_errors(capsys, flags, message):
    with pytest.raises(SystemExit):
        additional_config(*flags)
    assert message in capsys.readouterr().err.splitlines()[-1]
