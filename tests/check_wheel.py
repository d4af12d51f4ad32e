"""The built wheel, installed into an empty environment and used there: `make check-wheel`.

python -m tests.check_wheel DIRECTORY_WITH_THE_WHEEL

The environment gets the wheel alone. A path file lends it the locked packages of this one, but not
this one's editable install.
"""

import subprocess
import sys
import tempfile
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path
from sysconfig import get_path

from packaging.metadata import Metadata

from layerskip_vllm.version import __version__

ROOT = Path(__file__).parents[1]
LIMIT_S = 120
CHECKS = {
    "the package is the wheel's": """
        import layerskip_vllm
        assert layerskip_vllm.__file__.startswith(sys.prefix), layerskip_vllm.__file__
    """,
    "the options need no vLLM": """
        import layerskip_vllm.config, layerskip_vllm.scheduling.policy
        assert not {"torch", "vllm"} & sys.modules.keys()
    """,
    "vLLM's entry point is there once": """
        from importlib.metadata import entry_points
        (entry_point,) = entry_points(group="vllm.general_plugins", name="layerskip")
        assert callable(entry_point.load())
    """,
    "the presets can be read": """
        from layerskip_vllm.training.recipe import PRESETS
        assert all(preset.read_text() for preset in PRESETS.iterdir())
    """,
    "vLLM loads the plugin": """
        from vllm.plugins import load_general_plugins
        load_general_plugins()
        from vllm import ModelRegistry
        assert "LayerSkipLlamaForCausalLM" in ModelRegistry.get_supported_archs()
    """,
}


def check_contents(wheel: Path) -> None:
    """Compare the wheel's files with the repository's, and validate its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        text = archive.read(metadata)
    tracked = subprocess.run(
        ["git", "ls-files", "layerskip_vllm"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.split()
    if different := packed ^ set(tracked):
        sys.exit(f"only in the wheel or only in the repository: {sorted(different)}")
    Metadata.from_email(text, validate=True)
    if not str(message_from_bytes(text).get_payload()).startswith("# "):
        sys.exit("the metadata has no description: the package page would be empty")


def installed(wheel: Path, folder: Path) -> Path:
    """An environment with the wheel; returns its folder of programs."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", wheel], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "locked_packages.pth").write_text(get_path("purelib") + "\n")
    return folder / "bin"


def main() -> None:
    """Check the wheel; the exit code tells the result."""
    (wheel,) = Path(sys.argv[1]).glob("*.whl")
    if wheel.name.split("-")[1] != __version__:
        sys.exit(f"{wheel.name} is not of version {__version__}")
    check_contents(wheel)
    with tempfile.TemporaryDirectory() as folder:
        programs = installed(wheel, Path(folder) / "environment")
        empty = Path(folder) / "empty"
        empty.mkdir()
        commands = {"layerskip-vllm --help": [programs / "layerskip-vllm", "--help"]}
        for name, source in CHECKS.items():
            lines = ["import sys", *(line.strip() for line in source.strip().splitlines())]
            commands[name] = [programs / "python", "-c", "\n".join(lines)]
        for name, command in commands.items():
            subprocess.run(
                command, cwd=empty, check=True, timeout=LIMIT_S, stdout=subprocess.DEVNULL
            )
            print(f"{wheel.name}: {name}")


if __name__ == "__main__":
    main()
