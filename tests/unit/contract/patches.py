"""The diffs in `patches/`, and the supported releases to which each applies."""

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from layerskip_vllm.compat.releases import SUPPORTED_VLLM

PATCHES = sorted((Path(__file__).parents[3] / "patches").glob("*.patch"))

CHANGED_SINCE = {
    "0007": {"0.33": "vLLM 0.33 removed Ray's first executor and the choice of executor"},
    "0009": {"0.33": "vLLM 0.33 skips rows without an adapter itself"},
    "0011": {"0.33": "vLLM 0.33 changed the code around it"},
}
"""By number and release: why a diff for the oldest supported vLLM does not apply there."""


def touched_files(patch: Path) -> list[str]:
    """Paths that a diff changes, as `vllm/...`."""
    return re.findall(r"^\+\+\+ b/(\S+)$", patch.read_text(), flags=re.MULTILINE)


def copy_touched_files(patches: list[Path], root: Path, directory: Path) -> list[Path]:
    """Copy the files that the diffs change from `root`, which holds `vllm/`; return the copies."""
    copies = []
    for name in sorted({name for patch in patches for name in touched_files(patch)}):
        copies.append(directory / name)
        copies[-1].parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, copies[-1])
    return copies


def apply(patch: Path, directory: Path) -> str:
    """Apply a diff below a directory; return the output of `patch` if it fails, else ""."""
    result = subprocess.run(
        ["patch", "-p1", "--fuzz=0", "--batch", "--input", str(patch)],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout + result.stderr if result.returncode else ""


def misfits(root: Path) -> list[str]:
    """The numbers of the diffs that do not apply to the sources below `root`."""
    found = []
    for patch in PATCHES:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                copy_touched_files([patch], root, Path(scratch))
            except FileNotFoundError:
                found.append(number_of(patch))
                continue
            if apply(patch, Path(scratch)):
                found.append(number_of(patch))
    return found


def number_of(patch: Path) -> str:
    return patch.name.partition("-")[0]


def patch_entries() -> str:
    """The table of diffs and releases, for the ledger."""
    later = SUPPORTED_VLLM[1:]
    rows = [
        f"| [`{patch.name}`]({patch.name}) | "
        + " | ".join(_answer(number_of(patch), release) for release in later)
        + " |"
        for patch in PATCHES
    ]
    head = f"| Patch | {' | '.join(f'Applies to {release}' for release in later)} |"
    return "\n".join([head, "|---" * (len(later) + 1) + "|", *rows])


def _answer(number: str, release: str) -> str:
    reason = CHANGED_SINCE.get(number, {}).get(release)
    return f"no: {reason}" if reason else "yes"
