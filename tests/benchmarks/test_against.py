"""This checkout's benchmarks measure another checkout's package."""

import os
import subprocess
import sys

import pytest

from benchmarks.against import package_variables, with_other
from benchmarks.child import Child
from benchmarks.environment import REPOSITORY
from benchmarks.systems import System

SOURCES = """
import benchmarks, layerskip_vllm, layerskip_vllm.core, layerskip_vllm.measure
print(*(m.__file__ for m in (benchmarks, layerskip_vllm, layerskip_vllm.measure)), sep="\\n")
"""


@pytest.fixture
def checkout(tmp_path):
    for file in ("layerskip_vllm/__init__.py", "layerskip_vllm/core/__init__.py"):
        path = tmp_path / "old" / file
        path.parent.mkdir(parents=True)
        path.touch()
    (tmp_path / "old" / "benchmarks.py").write_text("raise AssertionError('not this one')")
    return tmp_path / "old"


def test_only_the_package_comes_from_the_other_checkout(checkout, tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", SOURCES],
        env=os.environ | package_variables(checkout, tmp_path),
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    links = tmp_path / "against"
    assert found == [
        str(REPOSITORY / "benchmarks" / "__init__.py"),
        str(links / "layerskip_vllm" / "__init__.py"),
        str(links / "layerskip_vllm" / "measure" / "__init__.py"),
    ]
    assert (links / "layerskip_vllm" / "__init__.py").resolve().is_relative_to(checkout)
    assert (links / "layerskip_vllm" / "measure").resolve().is_relative_to(REPOSITORY)


def test_links_to_an_earlier_checkout_are_replaced(checkout, tmp_path):
    package_variables(REPOSITORY, tmp_path)
    package_variables(checkout, tmp_path)
    assert not (tmp_path / "against" / "layerskip_vllm" / "plugin.py").exists()


def test_a_folder_without_the_package_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a checkout"):
        package_variables(tmp_path, tmp_path)


def test_each_self_speculating_system_is_measured_twice(checkout, tmp_path):
    systems = {name: System(name, "vllm", {"seed": 1}) for name in ("plain", "self", "ngram")}
    found = with_other(systems, checkout, tmp_path)
    assert list(found) == ["plain", "self", "self@other", "ngram"]
    assert found["self@other"].arguments == {"seed": 1}
    assert found["self@other"].variables == package_variables(checkout, tmp_path)
    assert not found["self"].variables
    assert with_other(systems, None, tmp_path) == systems


def test_a_systems_own_variables_override_those_of_all(monkeypatch, tmp_path):
    class StartedError(Exception):
        pass

    def start(command, *, env, **settings):
        raise StartedError(env)

    monkeypatch.setattr(subprocess, "Popen", start)
    system = System("self@other", "vllm", {}, variables={"PLACE": "there"})
    with pytest.raises(StartedError) as started:
        Child(system, {"PLACE": "here", "SHARED": "yes"}, tmp_path / "log")
    assert started.value.args == ({"PLACE": "there", "SHARED": "yes"},)
