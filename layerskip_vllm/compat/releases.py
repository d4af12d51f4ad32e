"""The release series of vLLM, and those whose internals this package was written against.

For hooks whose behaviour costs too much to probe.
"""

from __future__ import annotations

from packaging.version import Version

SUPPORTED_VLLM = ("0.32", "0.33")
"""Release series, the oldest first. docs/compatibility.md says what ran on each."""


def release_series(version: str) -> str:
    """Return the series of a version: "0.32" for "0.32.0+cpu"."""
    parsed = Version(version)
    return f"{parsed.major}.{parsed.minor}"


def is_supported_vllm() -> bool:
    """Whether the installed vLLM is of a series whose internals we know."""
    import vllm.version

    return release_series(vllm.version.__version__) in SUPPORTED_VLLM
