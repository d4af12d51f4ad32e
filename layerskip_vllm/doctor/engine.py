"""Checks a model and an engine's flags: makes vLLM's configuration and loads no weights."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import torch
from pydantic import ValidationError

from layerskip_vllm.checkpoint.settings import SETTINGS_KEY
from layerskip_vllm.config import AUTO_MODEL, EARLY_EXIT, OPTIONS_KEY, is_self_model
from layerskip_vllm.doctor.checks import Check
from layerskip_vllm.models import SUPPORTED_ARCHITECTURES

if TYPE_CHECKING:
    from vllm.config import ModelConfig, VllmConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from layerskip_vllm.vllm_config.exit_candidates import ExitCandidates


def check_engine(model: str, flags: Sequence[str]) -> Iterator[Check]:
    """Yield the checks of `vllm serve MODEL FLAGS`; self:auto where the flags name no exit.

    The model's come first, by plain vLLM's configuration; its failure ends the checks.
    """
    if not Path(model).exists() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        yield Check("model", "configuration", "fail", f"{model}: no such folder")
        return
    try:
        arguments = serve_parser().parse_args(["serve", model, *flags])
        arguments.model = arguments.model_tag
    except ValueError as error:
        yield Check("engine", "flags", "fail", str(error), "vllm serve --help lists the flags")
        return
    try:
        plain = _plain_config(arguments)
    except Exception as error:  # vLLM, transformers and the hub raise many types
        advice = "give a folder with config.json, or a hub name; hf auth login where it is gated"
        is_missing = isinstance(error, OSError)
        yield Check(
            "model", "configuration", "fail", _one_line(error), advice if is_missing else ""
        )
        return
    yield from _check_model(plain.model_config)
    yield Check("engine", "plain vLLM", "ok", f"model runner {_manner(plain)}")
    args = _engine_args(arguments)
    asked = _asked(args)
    try:
        config = args.create_engine_config()
    except Exception as error:
        yield Check("engine", asked, "fail", _one_line(error))
        return
    yield Check("engine", asked, "ok", "vLLM accepts model and flags")
    if is_self_model(asked):
        yield from _check_speculation(config, args)
        yield from _check_memory(config)


def serve_parser() -> FlexibleArgumentParser:
    """The parser of `vllm`, with `serve` alone; it raises ValueError where it would exit."""
    from vllm.entrypoints.cli.serve import ServeSubcommand
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ValueError(message)

    parser = Parser(prog="vllm")
    ServeSubcommand().subparser_init(parser.add_subparsers())
    return parser


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


def _plain_config(arguments: argparse.Namespace) -> VllmConfig:
    args = _engine_args(arguments)
    args.spec_model = args.spec_tokens = args.spec_method = args.speculative_config = None
    others = args.additional_config or {}
    args.additional_config = {key: value for key, value in others.items() if key != OPTIONS_KEY}
    return args.create_engine_config()


def _check_model(config: ModelConfig) -> Iterator[Check]:
    architecture = config.architecture
    if architecture not in SUPPORTED_ARCHITECTURES:
        yield Check(
            "model",
            "family",
            "fail",
            f"{architecture}; supported: {', '.join(SUPPORTED_ARCHITECTURES)}",
            "serve it without self:E, or add its family (docs/add-a-family.md)",
        )
        return
    quantization = config.quantization or "none"
    yield Check("model", "family", "ok", f"{architecture}, quantization {quantization}")
    shape = (
        f"{config.get_total_num_hidden_layers()} layers of width {config.get_hidden_size()}, "
        f"vocabulary {config.get_vocab_size()}, context {config.max_model_len}, "
        f"{str(config.dtype).removeprefix('torch.')}"
    )
    yield Check("model", "shape", "ok", shape)
    try:
        candidates = _candidates(config)
    except ValueError as error:
        yield Check("model", "exit layers", "warn", str(error))  # self:auto will fail; self:E runs
        return
    exits = ", ".join(map(str, candidates.exit_layers))
    found = f"{candidates.first} to begin with, of {exits} (by {candidates.source})"
    if candidates.source.endswith("depth"):
        yield Check(
            "model",
            "exit layers",
            "warn",
            f"{found}; nothing says that the checkpoint was trained for early exit",
            "layerskip-vllm lens MODEL shows what each layer predicts; "
            "layerskip-vllm train trains it",
        )
    else:
        yield Check("model", "exit layers", "ok", found)


def _candidates(config: ModelConfig) -> ExitCandidates:
    from layerskip_vllm.vllm_config.exit_candidates import ModelShape, find_candidates

    shape = ModelShape(
        config.get_total_num_hidden_layers(), config.get_hidden_size(), config.get_vocab_size()
    )
    return find_candidates({}, getattr(config.hf_config, SETTINGS_KEY, None), shape)


def _check_speculation(config: VllmConfig, args: AsyncEngineArgs) -> Iterator[Check]:
    from layerskip_vllm.vllm_config.runner import choose_runner

    speculative_config = config.speculative_config
    layerskip = speculative_config.layerskip
    exits = " or ".join(map(str, layerskip.exit_layers))
    yield Check(
        "engine",
        "drafts",
        "ok",
        f"at most {speculative_config.num_speculative_tokens} tokens, by the first {exits} of "
        f"{layerskip.num_layers} layers",
    )
    _, reason = choose_runner(args)
    yield Check("engine", "model runner", "ok", f"{_manner(config)}; {reason}")


def _manner(config: VllmConfig) -> str:
    """How an engine runs: model runner, CUDA graphs, scheduling."""
    runner = "V2" if config.use_v2_model_runner else "V1"
    graphs = config.compilation_config.cudagraph_mode.name
    graphs = "no CUDA graphs" if graphs == "NONE" else f"CUDA graphs {graphs}"
    is_async = config.scheduler_config.async_scheduling
    return f"{runner}, {graphs}, {'asynchronous' if is_async else 'synchronous'} scheduling"


def _check_memory(config: VllmConfig) -> Iterator[Check]:
    model, layerskip = config.model_config, config.speculative_config.layerskip
    yield Check(
        "memory", "exit query cache", "ok", f"{num_state_bytes(config) / 1e6:.1f} MB a rank"
    )
    size = layerskip.draft_vocab_size
    found = "none: drafts use the whole LM head"
    if size is not None:
        num_bytes = size * model.get_hidden_size() * model.dtype.itemsize
        found = f"{num_bytes / 1e6:.1f} MB in all: {size} of {model.get_vocab_size()} tokens"
    yield Check("memory", "draft vocabulary", "ok", found)


def num_state_bytes(config: VllmConfig) -> int:
    """Bytes of the exit query cache, and of what V2 keeps to observe several exits."""
    from layerskip_vllm.runner_v2.passing_states import PassingStates
    from layerskip_vllm.spec_decode.exit_query_cache import ExitQueryCache

    on_v2, model = config.use_v2_model_runner, config.model_config
    shape = (
        config.scheduler_config.max_num_seqs + on_v2,  # V2's last row is nobody's
        config.speculative_config.num_speculative_tokens,
        model.get_hidden_size(),
        model.dtype,
        torch.device("meta"),
    )
    num_bytes = ExitQueryCache(*shape).num_bytes
    num_exits = len(config.speculative_config.layerskip.exit_layers)
    if on_v2 and num_exits > 1:
        num_bytes += PassingStates(num_exits, *shape).num_bytes
    return num_bytes


def _one_line(error: Exception) -> str:
    """The message, without pydantic's frame around it."""
    from layerskip_vllm.vllm_config.self_speculation import describe_faults

    text = describe_faults(error) if isinstance(error, ValidationError) else str(error)
    return " ".join(text.split()) or type(error).__name__
