"""The sources of vLLM's releases: the installed one's, and those that `make contract` downloads.

A downloaded wheel is built for GPUs and never imported. Only its Python files are kept, in
`build/vllm-RELEASE/`.
"""

import importlib.util
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from layerskip_vllm.compat.releases import SUPPORTED_VLLM, release_series
from tests.unit.contract.sources import Sources

BUILD = Path(__file__).parents[3] / "build"
PLATFORMS = ("manylinux_2_28", "manylinux_2_31", "manylinux_2_34", "manylinux_2_35")
"""Platform tags of vLLM's wheels for x86-64; pip compares tags literally."""


def installed() -> Sources:
    """The sources of the installed vLLM, found without importing it."""
    return Sources(Path(importlib.util.find_spec("vllm").origin).parents[1])


def version_of(sources: Sources) -> str:
    """The version of the sources, such as "0.33.0"."""
    text = (sources.root / "vllm" / "_version.py").read_text(encoding="utf-8")
    return re.search(r"^(?:__version__ = )?version = ['\"]([^'\"]+)", text, re.MULTILINE)[1]


def release_of(sources: Sources) -> str:
    """The release series of the sources, such as "0.33"."""
    return release_series(version_of(sources))


def directory_of(release: str) -> Path:
    return BUILD / f"vllm-{release}"


def downloaded() -> list[Sources]:
    """The supported releases that are not installed but already downloaded."""
    directories = [directory_of(release) for release in not_installed()]
    return [Sources(directory) for directory in directories if directory.is_dir()]


def not_installed() -> list[str]:
    """The supported release series, except the installed one."""
    return [release for release in SUPPORTED_VLLM if release != release_of(installed())]


def download(release: str) -> Sources:
    """Download a release such as "0.33" or "0.33.0", once, and unzip its Python files.

    Raises:
        subprocess.CalledProcessError: pip found no such wheel.
    """
    directory = directory_of(release)
    if not directory.is_dir():
        BUILD.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
            wheel = _wheel_of(release, Path(scratch))
            unzipped = Path(scratch) / "unzipped"
            with zipfile.ZipFile(wheel) as archive:
                names = [n for n in archive.namelist() if n.startswith("vllm/") and n[-3:] == ".py"]
                archive.extractall(unzipped, names)
            unzipped.rename(directory)
    return Sources(directory)


def _wheel_of(release: str, directory: Path) -> Path:
    exact = release if release.count(".") > 1 else f"{release}.*"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    platforms = [f"--platform={platform}_x86_64" for platform in PLATFORMS]
    options = ["--no-deps", "--only-binary=:all:", "--python-version=3.12", "--dest", directory]
    subprocess.run([*pip, "download", *platforms, *options, f"vllm=={exact}"], check=True)
    (wheel,) = directory.glob("vllm-*.whl")
    return wheel
