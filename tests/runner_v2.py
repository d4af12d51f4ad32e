"""Model Runner V2 on a CPU: Triton's interpreter stands in for Triton.

vLLM's V2 for CPUs needs triton-cpu, which no package index has. A stub of its backend makes vLLM
find it, and the interpreter runs the kernels. This is test equipment; the package has none of it.
"""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

VARIABLE = "LAYERSKIP_TEST_RUNNER"
"""Environment variable: `v2` runs the tests on V2, anything else on V1, vLLM's choice on a CPU."""

EVERYWHERE = Path(__file__).with_name("runner_v2_everywhere")
"""Metadata of a plugin: in every process with this folder in its path, vLLM calls `emulate`."""


def is_chosen() -> bool:
    """Whether this run tests V2."""
    return os.environ.get(VARIABLE) == "v2"


def emulate() -> None:
    """Prepare this process and those that it starts; call it before the first import of vLLM."""
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    _extend_path(EVERYWHERE)
    _extend_path(EVERYWHERE.parent.parent)
    from triton.backends import backends

    driver = SimpleNamespace(is_active=lambda: False)
    backends["cpu"] = SimpleNamespace(driver=driver, compiler=None)
    _accept_wide_masks()
    _provide_log1p()


def _extend_path(folder: Path) -> None:
    """Let this process and those that it starts import from a folder."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(folder) not in inherited:
        os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, inherited), str(folder)])


def _accept_wide_masks() -> None:
    """Repair stores whose mask is an `&` of comparisons: the interpreter keeps the operands' type.

    vLLM's kernel for structured outputs has one. On a device each comparison is one bit.
    """
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, tl

    if InterpreterBuilder.create_masked_store.__module__ == __name__:
        return  # done before, in this process
    store = InterpreterBuilder.create_masked_store

    def create_masked_store(self, ptrs, value, mask, cache_policy):
        mask = TensorHandle(mask.data.astype(bool), tl.int1)
        return store(self, ptrs, value, mask, cache_policy)

    InterpreterBuilder.create_masked_store = create_masked_store


def _provide_log1p() -> None:
    """Add the one function of a GPU's math library that rejection sampling needs."""
    import numpy as np
    from triton.language import core
    from triton.language.extra import libdevice
    from triton.runtime.interpreter import TensorHandle

    def log1p(value):
        with np.errstate(invalid="ignore", divide="ignore"):  # the kernel drops what has no log
            result = np.log1p(value.handle.data)
        return core.tensor(TensorHandle(result, value.handle.dtype), value.type)

    libdevice.log1p = log1p


def configure_after_vllm(monkeypatch, change) -> None:
    """Change the configuration of engines that start later, after vLLM has made it fit for CPUs."""
    from vllm.platforms.cpu import CpuPlatform

    update = CpuPlatform.check_and_update_config.__func__

    def check_and_update_config(cls, vllm_config):
        update(cls, vllm_config)
        change(vllm_config)

    monkeypatch.setattr(
        CpuPlatform, "check_and_update_config", classmethod(check_and_update_config)
    )


def schedule_asynchronously(monkeypatch) -> None:
    """Undo that vLLM turns asynchronous scheduling off on CPUs, for engines that start later."""

    def change(vllm_config):
        vllm_config.scheduler_config.async_scheduling = True

    configure_after_vllm(monkeypatch, change)
