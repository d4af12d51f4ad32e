"""Write the SHA-256 of every wheel that a pin may install into the requirement files.

`make lock` runs it after a pin changed. uv lists the wheels; those for Linux on x86-64 and for the
Python versions below count. If a pin has not changed, hashes that uv does not find stay: they come
from another index.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from urllib.parse import unquote

from packaging.tags import Tag
from packaging.utils import parse_wheel_filename

LOCKS = [Path(__file__).parent / name for name in ("cpu.txt", "dev.txt", "torchao.txt")]
CPYTHONS = (11, 12)
"""The minor versions whose wheels get a hash."""
PIN = re.compile(r"^([A-Za-z0-9._-]+)==[^ \\]+")
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def canonical(name: str) -> str:
    """The name as uv writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def is_installable(tag: Tag) -> bool:
    """Tell if Linux on x86-64 installs such a wheel on one of the Python versions."""
    on_linux = tag.platform == "any" or re.fullmatch(r"(many)?linux\w*_x86_64", tag.platform)
    interpreter = re.fullmatch(r"(cp|py)3(\d*)", tag.interpreter)
    if not on_linux or not interpreter:
        return False
    minor = int(interpreter[2] or 0)
    if interpreter[1] == "py" or tag.abi == "abi3":
        return minor <= max(CPYTHONS)
    return minor in CPYTHONS and tag.abi in (tag.interpreter, "none")


def published(lock: Path, options: list[str]) -> dict[str, set[str]]:
    """The hashes of the installable wheels of each pin, by canonical name."""
    command = ["uv", "pip", "compile", "--no-config", "--quiet", "--no-deps", "--no-header"]
    command += ["--universal", "--python-version", "3.11", "--only-binary", ":all:"]
    command += ["--format", "pylock.toml", *options, str(lock)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {
        package["name"]: {
            wheel["hashes"]["sha256"]
            for wheel in package["wheels"]
            if any(map(is_installable, parse_wheel_filename(file_name(wheel))[3]))
        }
        for package in tomllib.loads(answer.stdout)["packages"]
    }


def file_name(wheel: dict) -> str:
    """The file name of a wheel in uv's list."""
    return wheel.get("name") or unquote(Path(wheel.get("url") or wheel["path"]).name)


def pins_with_hashes(text: str) -> dict[str, set[str]]:
    """The hashes that the text holds for each pin, by canonical name."""
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        if pin := PIN.match(line):
            hashes = found[canonical(pin[1])] = set()
        elif known := HASH.search(line):
            hashes.add(known[1])
    return found


def rewritten(text: str, published_hashes: dict[str, set[str]]) -> str:
    """The text with the published hashes below each pin, and its own if the pin has not changed."""
    held = pins_with_hashes(text)
    lines = []
    for line in text.splitlines():
        if HASH.search(line):
            continue
        pin = PIN.match(line)
        if pin is None:
            lines.append(line)
            continue
        name = canonical(pin[1])
        hashes = published_hashes[name]
        if hashes & held[name]:
            hashes |= held[name]
        entries = [pin[0], *(f"    --hash=sha256:{digest}" for digest in sorted(hashes))]
        lines.append(" \\\n".join(entries))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Rewrite all requirement files; the arguments are options for uv."""
    for lock in LOCKS:
        try:
            hashes = published(lock, sys.argv[1:])
        except subprocess.CalledProcessError:
            sys.exit(f"hashes.py: uv found not all pins of {lock.name}; see above")
        if missing := [name for name, digests in hashes.items() if not digests]:
            sys.exit(f"hashes.py: {lock.name}: no wheel for Linux on x86-64 of {missing}")
        lock.write_text(rewritten(lock.read_text(), hashes))


if __name__ == "__main__":
    main()
