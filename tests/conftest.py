"""Settings that must precede the import of vLLM, and models that all suites share."""

import os

# In one process an engine starts in seconds, and tests can inspect its workers' objects.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
# Two OpenMP threads wait for each other at every barrier: very slow beside other processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Two test processes would both bind their thread to the first core.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import hypothesis
import pytest

from tests import runner_v2

if runner_v2.is_chosen():
    runner_v2.emulate()

from tests.models import RandomLlama, RandomModel

# No deadline: an example must not fail because the machine is busy with a server.
hypothesis.settings.register_profile("quick", deadline=None, max_examples=40)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=200)
hypothesis.settings.load_profile("quick")  # `make test-all` selects the other


SHARE_SERVERS = {
    f"tests/server/test_{name}.py"
    for name in ("api", "echo", "observability", "requests", "tool_streams")
}


def pytest_xdist_make_scheduler(config, log):
    """Run each file's tests in one process, and files that share a pair of servers in the same."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "servers" if file in SHARE_SERVERS else file

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(config, items):
    """Leave out tests of the model runner that this run does not use."""
    other = "runner_v1" if runner_v2.is_chosen() else "runner_v2"
    left_out = [item for item in items if item.get_closest_marker(other)]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def random_llama(models_dir):
    """`random_llama(num_layers=..., tied=...)` -> path of that random checkpoint, created once."""

    def path(**shape) -> str:
        return RandomLlama(**shape).save(models_dir)

    return path


@pytest.fixture(scope="session")
def random_model(models_dir):
    """`random_model(family="qwen3", sliding_window=...)` -> path of that random checkpoint."""

    def path(**shape) -> str:
        return RandomModel(**shape).save(models_dir)

    return path


@pytest.fixture(scope="session")
def smollm2():
    """A real 30-layer Llama, not trained for early exit: it shows correctness, not speed."""
    from layerskip_vllm.demo.smollm2 import prepare

    return str(prepare())
