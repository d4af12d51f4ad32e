"""The release series of vLLM, for hooks whose behaviour costs too much to probe."""

from __future__ import annotations

import vllm.version
from packaging.version import Version


def vllm_release() -> str:
    """The installed vLLM's release series, such as "0.32"."""
    version = Version(vllm.version.__version__)
    return f"{version.major}.{version.minor}"
