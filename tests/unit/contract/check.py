"""Check the contract against releases that are not installed: `make contract [VLLM=0.34]`.

Prints each expectation that fails, why we have it and where the plugin uses it.
"""

import re
import subprocess
import sys
from pathlib import Path

from layerskip_vllm.compat.releases import SUPPORTED_VLLM
from tests.unit.contract.areas import AREAS
from tests.unit.contract.expectations import Expectation
from tests.unit.contract.patches import misfits
from tests.unit.contract.releases import download, not_installed, release_of, version_of
from tests.unit.contract.sources import Sources

ROOT = Path(__file__).parents[3]
MAX_USES = 4


def failures(sources: Sources) -> list[str]:
    """Describe what to mend for a release, in one paragraph for each expectation that fails."""
    release = release_of(sources)
    return [
        failure(expectation, faults, area)
        for area in AREAS
        for expectation in area.EXPECTATIONS
        if expectation.applies_to(release) and (faults := expectation.faults(sources))
    ]


def failure(expectation: Expectation, faults: list[str], area) -> str:
    uses = uses_of(expectation.names())
    lines = (
        f"{expectation.path}",
        f"    expected: {expectation.claim()}",
        f"    found:    {'; '.join(faults)}",
        f"    why:      {expectation.reason}",
        f"    where:    {area.__doc__.splitlines()[0]}",
        *(f"              {use}" for use in uses[:MAX_USES]),
        *([f"              and {len(uses) - MAX_USES} more"] if len(uses) > MAX_USES else []),
    )
    return "\n".join(lines)


def uses_of(names: tuple[str, ...]) -> list[str]:
    """The lines of the package that mention one of the names, as `file:line`."""
    mention = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    return [
        f"{file.relative_to(ROOT)}:{number}"
        for file in sorted((ROOT / "layerskip_vllm").rglob("*.py"))
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if mention.search(line)
    ]


def report(sources: Sources) -> bool:
    """Print a release's report; return whether no expectation fails."""
    found, release = failures(sources), release_of(sources)
    checked = sum(e.applies_to(release) for area in AREAS for e in area.EXPECTATIONS)
    print("\n".join(found))
    known = "" if release in SUPPORTED_VLLM else ", which the plugin does not support"
    print(f"vLLM {version_of(sources)}{known}: {len(found)} of {checked} expectations fail")
    print(f"patches that do not apply: {', '.join(misfits(sources.root)) or 'none'}")
    return not found


def main(releases: list[str]) -> int:
    """Report on each release; return the exit status."""
    try:
        are_fine = [report(download(release)) for release in releases or not_installed()]
    except subprocess.CalledProcessError:
        print("make contract: pip found no wheel of this vLLM for Linux on x86-64; see its message")
        return 1
    return 0 if all(are_fine) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
