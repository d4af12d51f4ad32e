"""Checks a model and an engine's flags: makes vLLM's configuration and loads no weights."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from layerskip_vllm.checkpoint.settings import CONFIG_FILE
from layerskip_vllm.config import AUTO_MODEL, EARLY_EXIT, OPTIONS_KEY, is_self_model
from layerskip_vllm.doctor.checks import Check
from layerskip_vllm.doctor.flags import advice_on, parse_flags
from layerskip_vllm.doctor.memory import check_memory
from layerskip_vllm.doctor.model import check_model

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

SECTION = "engine"


def check_engine(model: str, flags: Sequence[str]) -> Iterator[Check]:
    """Yield the checks of `vllm serve MODEL FLAGS`; self:auto where the flags name no exit.

    The model's come first, by plain vLLM's configuration, also where a flag is bad.
    """
    if not Path(model).exists() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        yield Check("model", "configuration", "fail", f"{model}: no such folder")
        return
    if Path(model).is_dir() and not (Path(model) / CONFIG_FILE).exists():
        yield Check("model", "configuration", "fail", f"{model}: no {CONFIG_FILE} in it")
        return
    bad_flags = None
    try:
        arguments = parse_flags(model, flags)
    except ValueError as error:
        arguments = parse_flags(model, [])
        bad_flags = Check(SECTION, "flags", "fail", str(error), advice_on(flags))
    try:
        plain = _plain_config(arguments)
    except Exception as error:  # vLLM, transformers and the hub raise many types
        yield _bad_model(error)
        plain = None
    else:
        yield from check_model(plain.model_config)
    if bad_flags is not None:
        yield bad_flags
    elif plain is not None:
        manner = _manner(plain)
        found = f"model runner {_in_words(manner)}"
        yield Check(SECTION, "plain vLLM", "ok", found, values=manner)
        yield from _check_flags(_engine_args(arguments))


def _bad_model(error: Exception) -> Check:
    is_missing = isinstance(error, OSError)
    advice = "give a folder with config.json, or a hub name; hf auth login where it is gated"
    return Check("model", "configuration", "fail", _one_line(error), advice if is_missing else "")


def _check_flags(args: AsyncEngineArgs) -> Iterator[Check]:
    asked = _asked(args)
    try:
        config = args.create_engine_config()
    except Exception as error:  # as above
        yield Check(SECTION, asked, "fail", _one_line(error))
        return
    yield Check(SECTION, asked, "ok", "vLLM accepts model and flags")
    if is_self_model(asked):
        yield from _check_speculation(config, args)
        yield from check_memory(config)


def _plain_config(arguments: argparse.Namespace) -> VllmConfig:
    args = _engine_args(arguments)
    args.spec_model = args.spec_tokens = args.spec_method = args.speculative_config = None
    others = args.additional_config or {}
    args.additional_config = {key: value for key, value in others.items() if key != OPTIONS_KEY}
    return args.create_engine_config()


def _engine_args(arguments: argparse.Namespace) -> AsyncEngineArgs:
    """The user's, with self:auto where they ask for no speculation and no early exit."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    args = AsyncEngineArgs.from_cli_args(arguments)
    if _asked(args) == AUTO_MODEL and not args.speculative_config:
        args.spec_model = AUTO_MODEL
    return args


def _asked(args: AsyncEngineArgs) -> str:
    """What the flags ask for: early exit, a speculative model or method, else self:auto."""
    from layerskip_vllm.vllm_config.self_speculation import layerskip_options

    options = layerskip_options(args)
    if isinstance(options, Mapping) and EARLY_EXIT in options:
        return "--early-exit"
    settings = args.speculative_config or {}
    names = (args.spec_model, settings.get("model"), args.spec_method, settings.get("method"))
    return next(filter(None, names), AUTO_MODEL)


def _check_speculation(config: VllmConfig, args: AsyncEngineArgs) -> Iterator[Check]:
    from layerskip_vllm.vllm_config.runner import choose_runner

    layerskip = config.speculative_config.layerskip
    num_tokens = config.speculative_config.num_speculative_tokens
    exits = " or ".join(map(str, layerskip.exit_layers))
    found = f"at most {num_tokens} tokens, by the first {exits} of {layerskip.num_layers} layers"
    values = {
        "exit_layers": list(layerskip.exit_layers),
        "num_speculative_tokens": num_tokens,
        "draft_vocab_size": layerskip.draft_vocab_size,
    }
    yield Check(SECTION, "drafts", "ok", found, values=values)
    rate = layerskip.break_even_acceptance_rate
    found = f"drafting pays above an acceptance rate of {rate:.2f}, by layers and LM head"
    values = {"break_even_acceptance_rate": round(rate, 4)}
    yield Check(SECTION, "break-even", "ok", found, values=values)
    _, reason = choose_runner(args)
    manner = _manner(config)
    found = f"{_in_words(manner)}; {reason}"
    yield Check(SECTION, "model runner", "ok", found, values=manner | {"reason": reason})


def _manner(config: VllmConfig) -> dict[str, object]:
    """How an engine runs."""
    return {
        "runner": "V2" if config.use_v2_model_runner else "V1",
        "cudagraph_mode": config.compilation_config.cudagraph_mode.name,
        "async_scheduling": bool(config.scheduler_config.async_scheduling),
    }


def _in_words(manner: Mapping[str, object]) -> str:
    mode = manner["cudagraph_mode"]
    graphs = "no CUDA graphs" if mode == "NONE" else f"CUDA graphs {mode}"
    scheduling = "asynchronous" if manner["async_scheduling"] else "synchronous"
    return f"{manner['runner']}, {graphs}, {scheduling} scheduling"


def _one_line(error: Exception) -> str:
    """The message, without pydantic's frame around it."""
    from layerskip_vllm.vllm_config.self_speculation import describe_faults

    text = describe_faults(error) if isinstance(error, ValidationError) else str(error)
    return " ".join(text.split()) or type(error).__name__
