"""The process of one engine: it reads JSON lines from a socket and answers each.

`engine_process.py` starts it, with a log file as its standard output. The first message holds
`model`, `vllm_flags`, `defaults` (arguments of `vllm.LLM` that the flags may override) and
`speculation` (arguments of `vllm.LLM`; empty in plain vLLM).
"""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import IO, NoReturn

from layerskip_vllm.measure.decoding import DraftCounts
from layerskip_vllm.measure.engine import VllmEngine
from layerskip_vllm.measure.host import cpu_name
from layerskip_vllm.scheduling.request_options import NUM_DRAFTS_ARG

OWN_ARGUMENTS = (
    *("model", "spec_model", "spec_tokens", "spec_method", "speculative_config"),
    *("additional_config", "skip_tokenizer_init", "disable_log_stats"),
)
"""What the sweep sets itself."""

NUM_WARM_UP_TOKENS = 8
"""Output tokens of the untimed batch before a turn: the first steps of a shape are slow."""


def llm_arguments(flags: Sequence[str]) -> dict[str, object]:
    """Turn flags of `vllm serve` into arguments of `vllm.LLM`.

    Raises:
        ValueError: vLLM does not know a flag or its value, or the sweep sets it itself.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.plugins import load_general_plugins
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"--vllm-flags: {message}")

    load_general_plugins()
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    parser.error = refuse
    defaults, given = vars(parser.parse_args([])), vars(parser.parse_args(list(flags)))
    arguments = {
        key: value
        for key, value in given.items()
        if not key.startswith("_") and value != defaults.get(key)
    }
    for name in OWN_ARGUMENTS:
        if name in arguments:
            refuse(f"the sweep sets {name} itself: leave it out")
    return arguments


def measure(
    engine: VllmEngine,
    batches: Sequence[Sequence[Sequence[int]]],
    max_tokens: int,
    temperature: float,
    num_speculative_tokens: int | None,
) -> dict[str, object]:
    """Decode batches; returns tokens/s over their full steps, and the counts of drafts.

    Raises:
        ValueError: A batch has no step in which all its requests decode.
    """
    limit = {} if num_speculative_tokens is None else {NUM_DRAFTS_ARG: num_speculative_tokens}
    engine.decode(batches[0], min(NUM_WARM_UP_TOKENS, max_tokens), temperature, extra_args=limit)
    num_tokens, seconds, drafts = 0, 0.0, DraftCounts()
    for prompts in batches:
        decoding = engine.decode(prompts, max_tokens, temperature, extra_args=limit)
        num_tokens += decoding.num_decoded
        seconds += sum(decoding.step_s[step] for step in decoding.full_steps())
        drafts += decoding.drafts
    return {"tokens_per_s": num_tokens / seconds, "drafts": asdict(drafts)}


def main() -> None:
    """Start the engine that the first message describes, then measure until the parent closes."""
    lines = socket.socket(fileno=int(sys.argv[1])).makefile("rw", encoding="utf-8")
    engine = None
    for line in iter(lines.readline, ""):
        message = json.loads(line)
        try:
            if engine is None:
                engine = _start(message)
                answer: dict[str, object] = {"device": _device()}
            else:
                answer = measure(engine, **message)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".partition("\n")[0]}
        _send(lines, answer)
    if engine is not None:
        engine.close()


def _start(message: Mapping) -> VllmEngine:
    arguments = llm_arguments(message["vllm_flags"])
    return VllmEngine(
        {
            **message["defaults"],
            **arguments,
            **message["speculation"],
            "model": message["model"],
            # Prompts and outputs are token ids.
            "skip_tokenizer_init": True,
        }
    )


def _send(lines: IO[str], answer: Mapping[str, object]) -> None:
    lines.write(json.dumps(answer) + "\n")
    lines.flush()


def _device() -> str:
    """Name the GPU, or the CPU and its cores that this process may use."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return str(current_platform.get_device_name())
    return f"{cpu_name()}, {len(os.sched_getaffinity(0))} cores"


if __name__ == "__main__":
    main()
