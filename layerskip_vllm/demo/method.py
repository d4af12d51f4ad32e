"""One sentence that says what the demo measured."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version

from layerskip_vllm.demo.models import DemoModel
from layerskip_vllm.measure.host import cpu_name
from layerskip_vllm.version import __version__

BOUND_CORES = re.compile(r"core ids=\[([\d, ]+)\]")
"""vLLM's log line that names the cores of a CPU worker, a thread on each."""


def method(model: DemoModel, num_prompts: int, num_rounds: int, log: str) -> str:
    """The sentence; its load average is of the last minute before the call.

    Args:
        model: Was served.
        num_prompts: Of each round.
        num_rounds: Were measured.
        log: A server's.
    """
    return (
        f"Measured: {model.name} ({model.description}), float32, greedy, eager, one request at a "
        f"time; {num_prompts} prompts in each of {num_rounds} rounds, streamed from two "
        "`vllm serve` processes in turns, the other idle, in alternating order, after an uncounted "
        f"warm-up; {hardware(log)}, load average {os.getloadavg()[0]:.1f}; "
        f"vLLM {version('vllm')}, PyTorch {version('torch')}, "
        f"layerskip-vllm {__version__}, Python {platform.python_version()}."
    )


def hardware(log: str) -> str:
    """The GPU, or the CPU, its cores, and the engine's threads as the server's log names them."""
    if "+cpu" not in version("torch"):
        import torch

        if torch.cuda.is_available():
            return str(torch.cuda.get_device_name())
    cores = len(os.sched_getaffinity(0))
    bound = BOUND_CORES.search(log)
    engine = f", the engine on {bound.group(1).count(',') + 1} of them" if bound else ""
    return f"{cpu_name()}, {cores} cores{engine}"
