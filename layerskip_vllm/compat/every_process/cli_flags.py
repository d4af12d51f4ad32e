"""The flags `--speculative-model`, `--num-speculative-tokens` and `--early-exit`.

Target: vllm.engine.arg_utils:EngineArgs.add_cli_args
Reason: These are the documented flags, and vLLM has no interface for plugins to add arguments.
    vLLM's own flags for the same settings are `--spec-model`, `--spec-tokens` and
    `--additional-config.layerskip.early_exit`.
How: Calls the original, then adds the flags with the same destinations as vLLM's. A malformed
    `self:E`, K or N is a parser error. Two flags that disagree on one setting are an error too: to
    detect this, vLLM's three flags get our argparse actions, which otherwise store as theirs do.
Upstream: 0001-speculative-model-flags.patch adds the first two flags.
    0006-llama-first-layers.patch serves the first layers of a Llama with
    `--hf-overrides.num_hidden_layers N`; other families need the same lines.
May go: When the oldest supported vLLM has the flags and can serve the first layers of a model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vllm.engine.arg_utils import EngineArgs

from layerskip_vllm.compat.releases import is_supported_vllm
from layerskip_vllm.compat.wrapping import wrap
from layerskip_vllm.vllm_config.flags import add_cli_args

if TYPE_CHECKING:
    from vllm.utils.argparse_utils import FlexibleArgumentParser


def is_needed() -> bool:
    """By release: a probe would build the parser, which costs each process a second."""
    return is_supported_vllm()


def install() -> None:
    """Wrap the method that fills vLLM's parser."""
    wrap(EngineArgs, "add_cli_args", _add_cli_args)


def _add_cli_args(
    original: Callable[..., FlexibleArgumentParser], parser: FlexibleArgumentParser
) -> FlexibleArgumentParser:
    return add_cli_args(original(parser))
