"""The host contract reads a release's sources as Python would, and says what there is to mend."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from layerskip_vllm.compat.releases import SUPPORTED_VLLM
from tests.unit.contract import check, compat
from tests.unit.contract.expectations import Admits, Has, Reads, Takes
from tests.unit.contract.releases import release_of, version_of
from tests.unit.contract.sources import MissingError, Sources

WHY = "A test."

FILES = {
    "_version.py": "__version__ = version = '0.33.1.dev2'\n",
    "__init__.py": "",
    "envs.py": """
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    KNOWN: bool = False
    FORGOTTEN: bool = False

variables = {"KNOWN": lambda: True}

def __getattr__(name):
    return variables[name]()
""",
    "typed.py": """
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.base import Base

__all__ = ["Base"]
""",
    "base.py": """
from dataclasses import dataclass, field
from typing import ClassVar, Literal

Inner = Literal["c"]
Letters = Literal["a", "b", Inner]

class Base:
    def __init__(self, size, *, name=None):
        self.size = size

    def run(self, first, second):
        if first in self.size:
            return second

    @property
    def length(self):
        return 1

@dataclass
class Settings:
    path: str
    limit: int = 3
    kind: ClassVar[str] = ""
    derived: int = field(init=False)
""",
    "package/__init__.py": """
from .inner import *
from ..base import Base as Renamed
""",
    "package/inner.py": """
from typing import overload

from vllm.base import Base, Settings

@overload
def convert(value: int): ...

@overload
def convert(value: str): ...

def convert(value, how): ...

class Derived(Base):
    if True:
        own = 1

    @classmethod
    def make(cls, value): ...

class More(Settings):
    extra: int = 0

Thing = Derived(1)
""",
}


@pytest.fixture
def sources(tmp_path):
    for name, text in FILES.items():
        file = tmp_path / "vllm" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "torch.py").write_text("nn = 1")
    return Sources(tmp_path)


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("vllm.base:Base", ["size", "name"]),
        ("vllm.package:Renamed.run", ["first", "second"]),
        ("vllm.package:Derived.run", ["first", "second"]),
        ("vllm.package:Derived", ["size", "name"]),
        ("vllm.package:Thing.run", ["first", "second"]),
        ("vllm.package.inner:Derived.make", ["value"]),
        ("vllm.package:convert", ["value", "how"]),
        ("vllm.base:Settings", ["path", "limit"]),
        ("vllm.package:More", ["path", "limit", "extra"]),
    ],
)
def test_parameters_are_found_through_imports_and_base_classes(sources, path, parameters):
    assert sources.parameters(path) == parameters


@pytest.mark.parametrize(
    "path",
    ["vllm.envs:KNOWN", "vllm.package:Derived.own", "vllm.package:Thing.length", "vllm.package"],
)
def test_a_name_is_found(sources, path):
    assert sources.find(path)


@pytest.mark.parametrize(
    "path",
    [
        *("vllm.envs:FORGOTTEN", "vllm.typed:Base", "vllm.gone:Base", "vllm.package:Gone"),
        *("vllm.package:Derived.gone", "torch:nn"),
    ],
)
def test_a_name_that_does_not_exist_at_run_time_is_missing(sources, path):
    with pytest.raises(MissingError):
        sources.find(path)


@pytest.mark.parametrize(
    "fault",
    [
        Takes("vllm.base:Base.run", WHY, positional=("second",)),
        Has("vllm.package:Derived", WHY, properties=("own",)),
        Reads("vllm.package:Derived.run", WHY, ("self.size",)),
        Admits("vllm.base:Letters", WHY, ("d",)),
        Takes("vllm.gone:Base", WHY),
    ],
    ids=str,
)
def test_a_broken_expectation_has_faults(sources, fault):
    assert fault.faults(sources) != []


@pytest.mark.parametrize(
    "expectation",
    [
        Takes("vllm.base:Base.run", WHY, positional=("first",)),
        Has("vllm.package:Derived", WHY, ("own", "run"), properties=("length",)),
        Reads("vllm.base:Base.run", WHY, ("first in self.size",)),
        Admits("vllm.base:Letters", WHY, ("a", "c")),
    ],
    ids=str,
)
def test_a_satisfied_expectation_has_none(sources, expectation):
    assert expectation.faults(sources) == []


def test_a_release_is_read_from_the_sources(sources):
    assert (version_of(sources), release_of(sources)) == ("0.33.1.dev2", "0.33")


@pytest.mark.parametrize(
    ("limits", "releases"),
    [
        ({}, ["0.9", "0.32", "0.33", "0.34"]),
        ({"until": "0.32"}, ["0.9", "0.32"]),
        ({"since": "0.33"}, ["0.33", "0.34"]),
        ({"since": "0.32", "until": "0.33"}, ["0.32", "0.33"]),
    ],
)
def test_an_expectation_applies_to_its_releases(limits, releases):
    expectation = Takes("vllm.base:Base", WHY, **limits)
    assert [r for r in ("0.9", "0.32", "0.33", "0.34") if expectation.applies_to(r)] == releases


def test_the_report_says_why_and_where(sources, capsys, monkeypatch):
    monkeypatch.setattr(check, "AREAS", (compat,))
    monkeypatch.setattr(check, "misfits", lambda root: ["0001"])
    gone = Takes("vllm.base:Base._get_actor_resource_kwargs", "Workers need it.")
    kept = Takes("vllm.base:Base.run", WHY)
    old = Takes("vllm.base:Base.old", WHY, until="0.32")
    monkeypatch.setattr(compat, "EXPECTATIONS", (gone, kept, old))
    assert not check.report(sources)
    report = capsys.readouterr().out
    assert "why:      Workers need it." in report
    assert "layerskip_vllm/compat/ray_cpu.py:" in report
    assert "vLLM 0.33.1.dev2: 1 of 2 expectations fail" in report
    assert "patches that do not apply: 0001" in report


def test_the_extra_for_gpus_admits_exactly_the_supported_releases():
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    (requirement,) = pyproject["project"]["optional-dependencies"]["cuda"]
    series = [f"0.{minor}" for minor in range(20, 60)]
    admitted = [s for s in series if f"{s}.1" in Requirement(requirement).specifier]
    assert admitted == list(SUPPORTED_VLLM)
