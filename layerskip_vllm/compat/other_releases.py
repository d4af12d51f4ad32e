"""An unsupported vLLM refuses `self:E` and early exit with a clear error.

Target: vllm.engine.arg_utils:EngineArgs.add_cli_args,
    vllm.engine.arg_utils:EngineArgs.create_speculative_config
Reason: None of the other hooks is installed on such a vLLM. `self:E` would end in an error about a
    missing checkpoint, and early exit would serve the whole model.
How: Wraps each method if it exists. The second checks the engine arguments: for `self:E` or options
    of ours it raises an error that names both versions, else it calls the original with the same
    arguments. The first adds hidden `--speculative-model` and `--early-exit`, unless that vLLM has
    them. Registers no models and changes nothing else.
Upstream: 0002-speculative-config-factory.patch: a factory that raises.
May go: When every vLLM on which the plugin can be installed lets plugins create speculative
    configurations.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import NoReturn

from layerskip_vllm.compat.wrapping import wrap
from layerskip_vllm.config import OPTIONS_KEY, is_self_model


def refuse_self_speculation(message: str) -> None:
    """Leave this vLLM unchanged, except that it refuses our features with this message."""
    import vllm.engine.arg_utils

    def refuse_self_model(value: str) -> str:
        return refuse(value) if is_self_model(value) else value

    def refuse(_: str) -> NoReturn:
        raise argparse.ArgumentTypeError(message)

    def add_cli_args(original, parser):  # type: ignore[no-untyped-def]
        parser = original(parser)
        for flag, parse in (("--speculative-model", refuse_self_model), ("--early-exit", refuse)):
            if flag not in parser._option_string_actions:
                parser.add_argument(
                    flag, type=parse, default=argparse.SUPPRESS, help=argparse.SUPPRESS
                )
        return parser

    def create_speculative_config(original, engine_args, *args, **kwargs):  # type: ignore[no-untyped-def]
        if _asks_for_ours(engine_args):
            raise ValueError(message)
        return original(engine_args, *args, **kwargs)

    host = getattr(vllm.engine.arg_utils, "EngineArgs", None)
    for wrapper in (add_cli_args, create_speculative_config):
        if host is not None and hasattr(host, wrapper.__name__):
            wrap(host, wrapper.__name__, wrapper)


def _asks_for_ours(engine_args: object) -> bool:
    """Whether the engine arguments of any vLLM release name `self:E` or hold options of ours."""

    def given(setting: str, key: str) -> object:
        value = getattr(engine_args, setting, None)
        return value.get(key) if isinstance(value, Mapping) else None

    models = (getattr(engine_args, "spec_model", None), given("speculative_config", "model"))
    return any(map(is_self_model, models)) or given("additional_config", OPTIONS_KEY) is not None
