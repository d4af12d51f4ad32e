"""The `vllm.general_plugins` entry point: vLLM calls `register` in every process it starts."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from packaging.version import Version

SUPPORTED_VLLM = "0.32"
"""The vLLM release series whose internals this package was written and tested against."""


def register() -> None:
    """Register the models and install the hooks. May be called many times."""
    import vllm.version

    if is_supported(vllm.version.__version__):
        from layerskip_vllm import hooks

        hooks.register_models()
        hooks.install()
    else:
        refuse_self_speculation(vllm.version.__version__)


def is_supported(vllm_version: str) -> bool:
    """Whether a vLLM version belongs to the supported release series."""
    version = Version(vllm_version)
    return f"{version.major}.{version.minor}" == SUPPORTED_VLLM


def refuse_self_speculation(vllm_version: str) -> None:
    """On another vLLM, leave everything alone but turn `self:E` into a clear error."""
    import vllm.engine.arg_utils

    from layerskip_vllm.config import is_self_model
    from layerskip_vllm.version import __version__
    from layerskip_vllm.wrapping import wrap

    message = (
        f"layerskip_vllm {__version__} supports vLLM {SUPPORTED_VLLM}.*, and this is vLLM "
        f"{vllm_version}: install a matching pair, or serve without self:E"
    )

    def refuse(value: str) -> str:
        if is_self_model(value):
            raise argparse.ArgumentTypeError(message)
        return value

    def add_cli_args(original, parser):  # type: ignore[no-untyped-def]
        parser = original(parser)
        if "--speculative-model" not in parser._option_string_actions:
            parser.add_argument(
                "--speculative-model",
                type=refuse,
                default=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
            )
        return parser

    def create_speculative_config(original, engine_args, *args, **kwargs):  # type: ignore[no-untyped-def]
        config = getattr(engine_args, "speculative_config", None)
        in_config = config.get("model") if isinstance(config, Mapping) else None
        if is_self_model(getattr(engine_args, "spec_model", None)) or is_self_model(in_config):
            raise ValueError(message)
        return original(engine_args, *args, **kwargs)

    host = getattr(vllm.engine.arg_utils, "EngineArgs", None)
    for wrapper in (add_cli_args, create_speculative_config):
        if host is not None and hasattr(host, wrapper.__name__):
            wrap(host, wrapper.__name__, wrapper)
