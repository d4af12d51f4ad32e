"""The `vllm.general_plugins` entry point: vLLM calls `register` in every process it starts."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import NoReturn

from packaging.version import Version

SUPPORTED_VLLM = "0.32"
"""The vLLM release series whose internals this package was written and tested against."""


def register() -> None:
    """Register the models and install the hooks. May be called many times."""
    import vllm.version

    if is_supported(vllm.version.__version__):
        from layerskip_vllm.compat import hooks

        hooks.register_models()
        hooks.install()
    else:
        refuse_self_speculation(vllm.version.__version__)


def is_supported(vllm_version: str) -> bool:
    """Whether a vLLM version belongs to the supported release series."""
    version = Version(vllm_version)
    return f"{version.major}.{version.minor}" == SUPPORTED_VLLM


def refuse_self_speculation(vllm_version: str) -> None:
    """On another vLLM, leave everything alone but turn `self:E` and early exit into errors."""
    import vllm.engine.arg_utils

    from layerskip_vllm.compat.wrapping import wrap
    from layerskip_vllm.config import is_self_model
    from layerskip_vllm.version import __version__

    message = (
        f"layerskip_vllm {__version__} supports vLLM {SUPPORTED_VLLM}.*, and this is vLLM "
        f"{vllm_version}: install a matching pair, or serve without self:E and early exit"
    )

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
    """Whether the engine arguments of whatever vLLM name `self:E` or hold options of ours."""
    from layerskip_vllm.config import OPTIONS_KEY, is_self_model

    def said(setting: str, key: str) -> object:
        value = getattr(engine_args, setting, None)
        return value.get(key) if isinstance(value, Mapping) else None

    models = (getattr(engine_args, "spec_model", None), said("speculative_config", "model"))
    return any(map(is_self_model, models)) or said("additional_config", OPTIONS_KEY) is not None
