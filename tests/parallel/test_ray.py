"""Tensor-parallel workers as actors of a one-node Ray cluster, on an emulated host."""

import shutil
from pathlib import Path

import pytest

import layerskip_vllm
from tests.parallel.hosts import one_host, skip_reason
from tests.parallel.jobs import DECODE, RAY, assert_decoded, job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(skip_reason() is not None, reason=str(skip_reason())),
]


@pytest.fixture(scope="module")
def host():
    with one_host() as host:
        yield host


@pytest.mark.parametrize(
    "inside_a_task",
    [pytest.param(False, id="from a script"), pytest.param(True, id="inside a task")],
)
def test_two_actors_give_the_output_of_one_process(
    host, model, token_prompts, plain_token_ids, inside_a_task
):
    done = host.run(DECODE, stdin=job(model, token_prompts, inside_a_task=inside_a_task, **RAY))
    assert_decoded(done, plain_token_ids)


def test_an_actor_of_another_version_is_refused_naming_both(model, token_prompts, tmp_path):
    """The Ray node has another version of the package than the driver."""
    package = Path(layerskip_vllm.__file__).parent
    shutil.copytree(package, tmp_path / package.name)
    (tmp_path / package.name / "version.py").write_text('__version__ = "9.9.9"\n')
    with one_host(PYTHONPATH=str(tmp_path)) as host:
        # Actors import from the driver's directory first, so it must not be our checkout.
        done = host.run(DECODE, stdin=job(model, token_prompts, **RAY), directory=tmp_path.parent)
    assert done.returncode != 0
    assert "has layerskip_vllm 9.9.9, and the engine that drives it has" in done.stderr
