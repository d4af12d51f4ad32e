"""Each diff in `patches/` applies to the installed vLLM, and the ledger names every hook."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

PATCHES_DIR = Path(__file__).parents[2] / "patches"
PATCHES = sorted(PATCHES_DIR.glob("*.patch"))

needs_patch_command = pytest.mark.skipif(
    shutil.which("patch") is None, reason="the command `patch` is not installed"
)


def site_packages() -> Path:
    """The directory that holds `vllm/`, found without importing vLLM."""
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


def test_there_are_patches_and_each_touches_vllm_alone():
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


def test_the_ledger_has_an_entry_for_every_hook_and_names_every_patch():
    from layerskip_vllm.compat.hooks import CPU_HOOKS, HOOKS

    ledger = (PATCHES_DIR / "README.md").read_text()
    for hook in HOOKS + CPU_HOOKS:
        assert f"### `{hook.host.__name__}.{hook.name}`" in ledger
    for patch in PATCHES:
        assert f"({patch.name})" in ledger
