"""vLLM's release series, and those whose internals this package supports.

Hooks check the release where a probe of vLLM's behaviour would cost too much.
"""

from __future__ import annotations

from packaging.version import Version

SUPPORTED_VLLM = ("0.32", "0.33")
"""Release series, the oldest first. docs/compatibility.md lists what ran on each."""


def release_series(version: str) -> str:
    """Return the series of a version: "0.32" for "0.32.0+cpu"."""
    parsed = Version(version)
    return f"{parsed.major}.{parsed.minor}"


def is_supported_vllm() -> bool:
    """Whether the installed vLLM belongs to a supported series."""
    import vllm.version

    return release_series(vllm.version.__version__) in SUPPORTED_VLLM
