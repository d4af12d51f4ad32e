"""docs/troubleshooting.md quotes messages as the package's sources have them."""

import ast
import re
from functools import cache

import pytest

from layerskip_vllm.vllm_config.unsupported import SELF_SPECULATION_UNSUPPORTED
from tests.unit.doc_blocks import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^```text\n(.*?)^```", PAGE, re.M | re.S)
MESSAGES = [" ".join(text.split()) for text in QUOTED]
NUM_MESSAGES = 20
MIN_LENGTH = 6
"""A shorter part between two values, such as "; ", distinguishes nothing."""


@cache
def texts() -> str:
    """All strings of the package, one a line; a value in a string ends its line."""
    found = []
    for path in sorted((ROOT / "layerskip_vllm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[sdr]|%\.\d+f", "\n", node.value).replace("%%", "%"))
    return "\n".join(found)


def parts(message: str) -> list[str]:
    """What stands between the values of a message."""
    return [part for part in message.split("…") if len(part.strip()) >= MIN_LENGTH]


@pytest.mark.parametrize("message", MESSAGES)
def test_a_quoted_message_is_in_the_sources(message):
    assert parts(message)
    missing = [part for part in parts(message) if part not in texts()]
    assert not missing


def test_the_page_quotes_twenty_messages():
    assert len(set(MESSAGES)) >= NUM_MESSAGES


def test_the_named_refusals_are_those_of_the_table():
    section = PAGE.partition("### self:E does not support a feature")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.M)
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    known = "\n".join(name for name, _ in SELF_SPECULATION_UNSUPPORTED) + texts()
    assert len(named) > 1
    assert [name for name in named if name not in known] == []
