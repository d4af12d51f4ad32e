"""The package's root stays small, and no module below the runners imports one."""

import pytest

from tests.unit.imports import PACKAGE, imported_names

MAX_ROOT_MODULES = 6
RUNNERS = ("layerskip_vllm.runner_v1", "layerskip_vllm.runner_v2", "vllm.v1.worker")
RUNNER_FREE = [
    PACKAGE / "config.py",
    *(
        path
        for folder in ("models", "spec_decode", "scheduling")
        for path in sorted((PACKAGE / folder).rglob("*.py"))
    ),
]


def runners_among(names: set[str]) -> list[str]:
    return sorted(
        name for name in names if any(name == r or name.startswith(f"{r}.") for r in RUNNERS)
    )


def test_the_root_holds_few_modules():
    modules = sorted(path.name for path in PACKAGE.glob("*.py"))
    assert len(modules) <= MAX_ROOT_MODULES, modules


def test_the_checked_folders_hold_modules():
    assert {path.parent.name for path in RUNNER_FREE} == {
        *("layerskip_vllm", "models", "spec_decode", "scheduling")
    }


@pytest.mark.parametrize("path", RUNNER_FREE, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_below_the_runners_imports_none(path):
    package = ".".join(path.relative_to(PACKAGE.parent).parent.parts)
    assert runners_among(imported_names(path.read_text(encoding="utf-8"), package)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import vllm.v1.worker.gpu_model_runner",
        "from vllm.v1 import worker",
        "from vllm.v1.worker.block_table import BlockTable",
        "from ..runner_v1 import proposer",
        "from .. import runner_v2",
        "def f():\n    from layerskip_vllm.runner_v1.proposer import Proposer",
        "if TYPE_CHECKING:\n    import layerskip_vllm.runner_v2",
    ],
)
def test_every_form_of_import_is_found(source):
    assert runners_among(imported_names(source, "layerskip_vllm.models"))


@pytest.mark.parametrize(
    "source", ["import vllm.v1.worker_stats", "from vllm.v1 import sample", "from . import split"]
)
def test_other_imports_are_allowed(source):
    assert not runners_among(imported_names(source, "layerskip_vllm.models"))
