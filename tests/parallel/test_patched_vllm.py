"""On a vLLM that has all of `patches/`, the plugin installs no hook and decodes the same."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.parallel.hosts import one_host, why_not
from tests.parallel.jobs import DECODE, RAY, assert_says, job
from tests.server.servers import user_environment
from tests.unit.test_patches import (
    PATCHES,
    apply,
    needs_patch_command,
    site_packages,
    touched_files,
)

pytestmark = needs_patch_command

TWO_CORES = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}

INSTALLED_HOOKS = """
import vllm.plugins
vllm.plugins.load_general_plugins()
from vllm.platforms import current_platform
current_platform.register_triton_kernel_overrides()  # as a worker does
from layerskip_vllm.compat.hooks import CPU_HOOKS, HOOKS
from layerskip_vllm.runner_v1.cpu import _expands_floats, _leaves_plain_rows_alone
from layerskip_vllm.compat.wrapping import OWNER_ATTRIBUTE
wrapped = [h.name for h in HOOKS + CPU_HOOKS if hasattr(getattr(h.host, h.name), OWNER_ATTRIBUTE)]
print(vllm.__file__)
print(wrapped, _expands_floats(), _leaves_plain_rows_alone())
"""


@pytest.fixture(scope="module")
def patched(tmp_path_factory):
    """A directory that holds the installed vLLM, patched; the files of no patch are links."""
    directory = tmp_path_factory.mktemp("patched")
    shutil.copytree(site_packages() / "vllm", directory / "vllm", copy_function=os.symlink)
    for name in {name for patch in PATCHES for name in touched_files(patch)}:
        (directory / name).unlink()
        shutil.copyfile(site_packages() / name, directory / name)
    for patch in PATCHES:
        apply(patch, directory)
    return directory


def run(patched, command, stdin="", **variables) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=user_environment() | {"PYTHONPATH": str(patched)} | variables,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_hook_is_installed(patched):
    done = run(patched, [sys.executable, "-c", INSTALLED_HOOKS])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [str(patched / "vllm" / "__init__.py"), "[] True True"]


@pytest.mark.parametrize("tensor_parallel_size", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_one_and_two_workers_say_the_same(
    patched, model, token_prompts, plain_token_ids, tensor_parallel_size
):
    text = job(model, token_prompts, tensor_parallel_size=tensor_parallel_size)
    assert_says(run(patched, DECODE, stdin=text, **TWO_CORES), plain_token_ids)


@pytest.mark.slow
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_workers_on_ray_say_the_same(patched, model, token_prompts, plain_token_ids):
    """Inside a task, which takes one thing more of the patch than a script does."""
    path = {"PYTHONPATH": str(patched)}
    with one_host(**path) as host:
        assert_says(
            host.run(
                DECODE,
                stdin=job(model, token_prompts, inside_a_task=True, **RAY),
                **path,
            ),
            plain_token_ids,
        )
