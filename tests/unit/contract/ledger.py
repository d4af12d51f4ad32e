"""Write the tables of `patches/README.md`: `make ledger`. A unit test fails if they are stale.

The first table lists the releases to which each diff applies. Table 1 holds the docstrings of the
hooks in `layerskip_vllm/compat/`, table 2 the contract.
"""

import ast
import inspect
import itertools
import re
import textwrap
from pathlib import Path

from tests.unit.contract.areas import AREAS
from tests.unit.contract.expectations import Expectation
from tests.unit.contract.patches import patch_entries

ROOT = Path(__file__).parents[3]
LEDGER = ROOT / "patches" / "README.md"
COMPAT = ROOT / "layerskip_vllm" / "compat"
SECTIONS = ("Target", "Reason", "How", "Upstream", "May go")


def hook_files() -> list[Path]:
    """The modules of `compat/` whose docstring names a target."""
    files = sorted(COMPAT.rglob("*.py"), key=lambda file: (file.parent == COMPAT, file))
    return [file for file in files if "\nTarget:" in docstring_of(file)]


def docstring_of(file: Path) -> str:
    return ast.get_docstring(ast.parse(file.read_text())) or ""


def sections_of(file: Path) -> dict[str, str]:
    """A hook's docstring by section; the first line is the section ""."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):", docstring_of(file), flags=re.MULTILINE)
    texts = [" ".join(part.split()) for part in parts]
    return {"": texts[0], **dict(zip(texts[1::2], texts[2::2], strict=True))}


def targets_of(file: Path) -> list[str]:
    """What a hook changes, each as `module:Class.method`."""
    return sections_of(file)["Target"].split(", ")


def probe_of(file: Path) -> str:
    """How a hook detects that it is needed: the docstring of `is_needed`."""
    functions = [n for n in ast.parse(file.read_text()).body if isinstance(n, ast.FunctionDef)]
    probes = [ast.get_docstring(node) for node in functions if node.name == "is_needed"]
    return " ".join(probes[0].split()) if probes else "By release, in `plugin.py`."


def hook_entry(file: Path) -> str:
    sections = sections_of(file)
    name = file.relative_to(ROOT)
    upstream = re.sub(r"\d{4}-[\w-]+\.patch", r"[`\g<0>`](\g<0>)", sections["Upstream"])
    lines = {
        "Target": ", ".join(f"`{target}`" for target in targets_of(file)),
        "Reason": sections["Reason"],
        "How": sections["How"],
        "Needed": probe_of(file),
        "Upstream": upstream,
        "May go": sections["May go"],
    }
    title = f"### {sections[''].removesuffix('.')}"
    entry = [f"- {key}: {text}" for key, text in lines.items()]
    wrapped = [
        textwrap.fill(
            line, 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        for line in entry
    ]
    return "\n".join([title, f"[`{name}`](../{name})", "", *wrapped])


def area_entry(area) -> str:
    title, _, where = inspect.getdoc(area).partition(": ")
    rows = [
        f"| {', '.join(f'`{label}`' for label in labels)} | {description} | {reason} |"
        for (description, reason), labels in grouped(area.EXPECTATIONS)
    ]
    return "\n".join(
        [f"### {title}", where, "", "| Internal | What we rely on | Why |", "|---|---|---|", *rows]
    )


def grouped(expectations: tuple[Expectation, ...]):
    """Merge neighbours that differ only in their target into one row."""
    rows = itertools.groupby(expectations, key=lambda e: (e.description(), e.reason))
    return [(key, [expectation.label for expectation in group]) for key, group in rows]


def updated(ledger: str) -> str:
    """The ledger with its tables up to date."""
    tables = {
        "patches": patch_entries(),
        "hooks": "\n\n".join(map(hook_entry, hook_files())),
        "contract": "\n\n".join(map(area_entry, AREAS)),
    }
    for name, table in tables.items():
        begin, end = f"<!-- {name}: make ledger -->", f"<!-- end of {name} -->"
        before, _, rest = ledger.partition(begin)
        _, found, after = rest.partition(end)
        assert found, f"{LEDGER} has no markers {begin} and {end}"
        ledger = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    return ledger


if __name__ == "__main__":
    LEDGER.write_text(updated(LEDGER.read_text()))
