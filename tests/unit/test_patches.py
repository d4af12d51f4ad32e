"""Each diff in `patches/` applies to the installed vLLM, and the ledger matches the code."""

import importlib
import pkgutil
import shutil
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
from tests.unit.contract.patches import (
    CHANGED_SINCE,
    PATCHES,
    apply,
    copy_touched_files,
    misfits,
    touched_files,
)
from tests.unit.contract.releases import downloaded, installed, release_of

SITE_PACKAGES = installed().root

needs_patch_command = pytest.mark.skipif(
    shutil.which("patch") is None, reason="the command `patch` is not installed"
)


def assert_changed_and_compiles(copies: list[Path], directory: Path) -> None:
    for copy in copies:
        source = copy.read_text()
        assert source != (SITE_PACKAGES / copy.relative_to(directory)).read_text()
        compile(source, str(copy), "exec")


def test_patches_exist_and_touch_only_vllm():
    assert PATCHES
    for patch in PATCHES:
        assert touched_files(patch)
        assert all(name.startswith("vllm/") for name in touched_files(patch))


@needs_patch_command
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_patch_applies_to_the_installed_vllm(patch, tmp_path):
    copies = copy_touched_files([patch], SITE_PACKAGES, tmp_path)
    assert apply(patch, tmp_path) == ""
    assert_changed_and_compiles(copies, tmp_path)


@needs_patch_command
def test_all_patches_apply_together_in_order(tmp_path):
    copies = copy_touched_files(PATCHES, SITE_PACKAGES, tmp_path)
    for patch in PATCHES:
        assert apply(patch, tmp_path) == ""
    assert_changed_and_compiles(copies, tmp_path)


@needs_patch_command
def test_the_ledger_knows_which_patches_apply_to_other_releases():
    """Of those that `make contract` has downloaded."""
    for sources in downloaded():
        release = release_of(sources)
        assert misfits(sources.root) == [n for n in CHANGED_SINCE if release in CHANGED_SINCE[n]]


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
