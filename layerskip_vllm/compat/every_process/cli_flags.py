"""The flags `--speculative-model`, `--num-speculative-tokens` and `--early-exit`.

Target: vllm.engine.arg_utils:EngineArgs.add_cli_args
Reason: These are the documented flags, and vLLM has no interface through which a plugin adds
    arguments. vLLM has the settings, as `--spec-model`, `--spec-tokens` and
    `--additional-config.layerskip.early_exit`.
How: Calls the original, then adds the flags with the destinations of vLLM's own. A malformed
    `self:E`, K or N is a parser error, and so are two flags that disagree on one setting: for that,
    vLLM's three flags get our argparse actions, which otherwise store as theirs do.
Upstream: 0001-speculative-model-flags.patch adds the first two flags,
    0006-llama-first-layers.patch serves the first layers of a Llama by
    `--hf-overrides.num_hidden_layers N`; other families want the same lines.
May go: When the oldest supported vLLM has the flags and serves by first layers.
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
    """By release: building the parser to look would take each process a second."""
    return is_supported_vllm()


def install() -> None:
    """Wrap the method that fills vLLM's parser."""
    wrap(EngineArgs, "add_cli_args", _add_cli_args)


def _add_cli_args(
    original: Callable[..., FlexibleArgumentParser], parser: FlexibleArgumentParser
) -> FlexibleArgumentParser:
    return add_cli_args(original(parser))
