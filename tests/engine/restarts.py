"""Make engines start and stop faster in one process.

A small engine takes 3.6 s to start and stop. vLLM spends 2.9 s of it in eight full garbage
collections and 0.4 s searching all modules for the kernels that it replaces on CPUs. Both walk
everything that torch, transformers and vLLM have imported.
"""

import atexit
import functools
import gc
from types import SimpleNamespace


@functools.cache
def make_restarts_cheap() -> None:
    """Exclude the imports from garbage collection, and replace each kernel only once.

    Call it before the first engine starts: objects that exist then are never collected.
    """
    from vllm.distributed import parallel_state
    from vllm.triton_utils import dispatcher
    from vllm.utils import gc_utils
    from vllm.v1.engine import core
    from vllm.v1.worker import gpu_worker

    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # otherwise Triton's bindings report every object as leaked
    # vLLM also freezes an engine's objects, and unfreezes everything when the engine stops.
    collector = SimpleNamespace(**(vars(gc) | {"freeze": _nothing, "unfreeze": _nothing}))
    for module in (parallel_state, gc_utils, core, gpu_worker):
        assert module.gc is gc
        module.gc = collector

    register = dispatcher.register_kernels

    def register_new(overrides: dict) -> None:
        new = {name: o for name, o in overrides.items() if name not in dispatcher._registry}
        if new:
            register(new)

    dispatcher.register_kernels = register_new


def _nothing() -> None:
    pass
