"""Checks a model's family, shape and exits by plain vLLM's configuration of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from layerskip_vllm.checkpoint.settings import SETTINGS_KEY
from layerskip_vllm.doctor.checks import Check
from layerskip_vllm.models import SUPPORTED_ARCHITECTURES

if TYPE_CHECKING:
    from vllm.config import ModelConfig

SECTION = "model"


def check_model(config: ModelConfig) -> Iterator[Check]:
    """Yield the checks of a model; an unsupported family ends them."""
    yield _family(config)
    if config.architecture in SUPPORTED_ARCHITECTURES:
        yield _shape(config)
        yield _exit_layers(config)


def _family(config: ModelConfig) -> Check:
    architecture = config.architecture
    quantization = config.quantization
    values = {"architecture": architecture, "quantization": quantization}
    if architecture not in SUPPORTED_ARCHITECTURES:
        found = f"{architecture}; supported: {', '.join(SUPPORTED_ARCHITECTURES)}"
        advice = "serve it without self:E, or add its family (docs/add-a-family.md)"
        return Check(SECTION, "family", "fail", found, advice, values)
    found = f"{architecture}, quantization {quantization or 'none'}"
    return Check(SECTION, "family", "ok", found, values=values)


def _shape(config: ModelConfig) -> Check:
    values = {
        "num_layers": config.get_total_num_hidden_layers(),
        "hidden_size": config.get_hidden_size(),
        "vocab_size": config.get_vocab_size(),
        "max_model_len": config.max_model_len,
        "dtype": str(config.dtype).removeprefix("torch."),
    }
    found = (
        "{num_layers} layers of width {hidden_size}, vocabulary {vocab_size}, "
        "context {max_model_len}, {dtype}"
    )
    return Check(SECTION, "shape", "ok", found.format(**values), values=values)


def _exit_layers(config: ModelConfig) -> Check:
    """A warning where nothing says which exits are good."""
    from layerskip_vllm.vllm_config.exit_candidates import ModelShape, find_candidates

    shape = ModelShape(
        config.get_total_num_hidden_layers(), config.get_hidden_size(), config.get_vocab_size()
    )
    settings = getattr(config.hf_config, SETTINGS_KEY, None)
    try:
        candidates = find_candidates({}, settings, shape)
    except ValueError as error:  # self:auto will fail; self:E runs
        return Check(SECTION, "exit layers", "warn", str(error))
    exits = ", ".join(map(str, candidates.exit_layers))
    found = f"{candidates.first} to begin with, of {exits} (by {candidates.source})"
    values = {
        "exit_layers": list(candidates.exit_layers),
        "first": candidates.first,
        "source": candidates.source,
    }
    if candidates.source.endswith("depth"):
        return Check(
            SECTION,
            "exit layers",
            "warn",
            f"{found}; nothing says that the checkpoint was trained for early exit",
            "layerskip-vllm lens MODEL shows what each layer predicts; "
            "layerskip-vllm train trains it",
            values,
        )
    return Check(SECTION, "exit layers", "ok", found, values=values)
