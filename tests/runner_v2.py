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
    _accept_wide_masks()


def _accept_wide_masks() -> None:
    """Repair stores whose mask is an `&` of comparisons: the interpreter keeps the operands' type.

    vLLM's kernel for structured outputs has one. On a device each comparison is one bit.
    """
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, tl

    store = InterpreterBuilder.create_masked_store

    def create_masked_store(self, ptrs, value, mask, cache_policy):
        mask = TensorHandle(mask.data.astype(bool), tl.int1)
        return store(self, ptrs, value, mask, cache_policy)

    InterpreterBuilder.create_masked_store = create_masked_store
