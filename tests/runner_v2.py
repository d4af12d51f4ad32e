"""Model Runner V2 on a CPU: Triton's interpreter stands in for Triton.

vLLM's V2 for CPUs needs triton-cpu, which no package index has. A stub of its backend makes vLLM
find it, and the interpreter runs the kernels. This is test equipment; the package has none of it.
"""

import os
from types import SimpleNamespace


def emulate() -> None:
    """Prepare this process; call it before the first import of vLLM."""
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    from triton.backends import backends

    driver = SimpleNamespace(is_active=lambda: False)
    backends["cpu"] = SimpleNamespace(driver=driver, compiler=None)
