"""Each diff in `patches/` applies to the installed vLLM, and the ledger matches the code."""

import importlib
import importlib.util
import pkgutil
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from layerskip_vllm.compat import every_process, worker
from tests.unit.contract.ledger import (
    LEDGER,
    SECTIONS,
    hook_files,
    sections_of,
    targets_of,
    updated,
)

PATCHES_DIR = Path(__file__).parents[2] / "patches"
PATCHES = sorted(PATCHES_DIR.glob("*.patch"))

needs_patch_command = pytest.mark.skipif(
    shutil.which("patch") is None, reason="the command `patch` is not installed"
)


def site_packages() -> Path:
    """The directory with `vllm/`, found without importing vLLM."""
    return Path(importlib.util.find_spec("vllm").origin).parents[1]


def touched_files(patch: Path) -> list[str]:
    """Paths that a diff changes, as `vllm/...`."""
    return re.findall(r"^\+\+\+ b/(\S+)$", patch.read_text(), flags=re.MULTILINE)


def copy_touched_files(patches: list[Path], directory: Path) -> list[Path]:
    copies = []
    for name in sorted({name for patch in patches for name in touched_files(patch)}):
        copies.append(directory / name)
        copies[-1].parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(site_packages() / name, copies[-1])
    return copies


def apply(patch: Path, directory: Path) -> None:
    result = subprocess.run(
        ["patch", "-p1", "--fuzz=0", "--batch", "--input", str(patch)],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def assert_changed_and_compiles(copies: list[Path], directory: Path) -> None:
    for copy in copies:
        source = copy.read_text()
        assert source != (site_packages() / copy.relative_to(directory)).read_text()
        compile(source, str(copy), "exec")


def test_patches_exist_and_touch_only_vllm():
    assert PATCHES
    for patch in PATCHES:
        assert touched_files(patch)
        assert all(name.startswith("vllm/") for name in touched_files(patch))


@needs_patch_command
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_patch_applies_to_the_installed_vllm(patch, tmp_path):
    copies = copy_touched_files([patch], tmp_path)
    apply(patch, tmp_path)
    assert_changed_and_compiles(copies, tmp_path)


@needs_patch_command
def test_all_patches_apply_together_in_order(tmp_path):
    copies = copy_touched_files(PATCHES, tmp_path)
    for patch in PATCHES:
        apply(patch, tmp_path)
    assert_changed_and_compiles(copies, tmp_path)


def test_each_patch_is_named_by_a_hook():
    upstream = " ".join(sections_of(file)["Upstream"] for file in hook_files())
    assert [patch.name for patch in PATCHES if patch.name not in upstream] == []


def test_each_hook_is_in_the_ledger_with_all_its_sections():
    modules = {
        Path(importlib.import_module(f"{folder.__name__}.{module.name}").__file__)
        for folder in (every_process, worker)
        for module in pkgutil.iter_modules(folder.__path__)
    }
    assert modules <= set(hook_files())
    for file in hook_files():
        assert set(sections_of(file)) == {"", *SECTIONS}, file
        assert all(sections_of(file).values()), file


@pytest.mark.parametrize(
    "target", sorted({target for file in hook_files() for target in targets_of(file)})
)
def test_each_target_of_a_hook_is_vllms(target):
    assert target.startswith("vllm.")
    pkgutil.resolve_name(target)


def test_the_ledger_is_up_to_date():
    assert updated(LEDGER.read_text()) == LEDGER.read_text(), "run `make ledger`"


def test_a_stale_table_is_rewritten():
    ledger = LEDGER.read_text()
    stale = ledger.replace("| `SpeculativeMethod` |", "| `AnotherMethod` |")
    assert stale != ledger
    assert updated(stale) == ledger
