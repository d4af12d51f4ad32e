"""Workers know their host and version, and Ray on CPU refuses unsupported settings."""

import pytest
from vllm import envs
from vllm.config import ParallelConfig, VllmConfig
from vllm.v1.executor.abstract import Executor

from layerskip_vllm import plugin
from layerskip_vllm.compat.every_process import shared_memory
from layerskip_vllm.compat.every_process.shared_memory import host_identity
from layerskip_vllm.compat.ray_cpu import CPURayExecutor
from layerskip_vllm.version import __version__
from layerskip_vllm.vllm_config.speculative_config import require_same_version


def test_boot_and_shared_memory_identify_a_host(monkeypatch, tmp_path):
    here = host_identity()
    assert here == host_identity()
    assert "/" not in here  # it becomes part of a shared-memory segment's name
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path)  # as in another container
    elsewhere = host_identity()
    assert elsewhere != here
    assert elsewhere.rpartition("-")[0] == here.rpartition("-")[0]


def test_a_worker_of_another_version_is_refused_naming_both():
    require_same_version(__version__)
    with pytest.raises(RuntimeError, match=rf"has layerskip_vllm {__version__}.*has 9\.9\.9"):
        require_same_version("9.9.9")


@pytest.fixture
def config():
    """`config(**of_parallel_config)`, with the plugin's hooks installed."""
    plugin.register()
    return lambda **arguments: VllmConfig(parallel_config=ParallelConfig(**arguments))


def test_ray_on_cpu_uses_the_executor_for_cpus(config):
    assert Executor.get_class(config(distributed_executor_backend="ray")) is CPURayExecutor


@pytest.mark.parametrize("backend", ["ray", "mp"])
def test_data_parallel_engines_on_ray_are_refused(config, backend):
    with pytest.raises(ValueError, match="--data-parallel-backend ray is not supported on CPU"):
        config(distributed_executor_backend=backend, data_parallel_backend="ray")


def test_the_ray_executor_without_cpu_workers_is_refused(config, monkeypatch):
    monkeypatch.setenv("VLLM_USE_RAY_V2_EXECUTOR_BACKEND", "0")
    with pytest.raises(ValueError, match="VLLM_USE_RAY_V2_EXECUTOR_BACKEND=0"):
        config(distributed_executor_backend="ray")


def test_a_vllm_without_that_executor_has_nothing_to_refuse(config, monkeypatch):
    monkeypatch.delitem(envs.environment_variables, "VLLM_USE_RAY_V2_EXECUTOR_BACKEND")
    assert Executor.get_class(config(distributed_executor_backend="ray")) is CPURayExecutor


@pytest.mark.parametrize(
    ("own", "expected"),
    [({}, "7"), ({"env_vars": {"OMP_NUM_THREADS": "3"}}, "3")],
    ids=["the driver's", "the user's"],
)
def test_an_actor_gets_the_drivers_number_of_threads_unless_the_user_sets_one(
    config, monkeypatch, own, expected
):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    executor = object.__new__(CPURayExecutor)
    executor.parallel_config = config(ray_runtime_env=own).parallel_config
    assert executor._build_runtime_env()["env_vars"]["OMP_NUM_THREADS"] == expected
