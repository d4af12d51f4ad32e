"""Find the commands and code blocks of the documentation."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
INLINE = re.compile(r"(?<!`)`((?:layerskip-vllm|vllm serve|make|python -m) [^`]+)`(?!`)")
COMMAND = re.compile(
    r"^(?:\w+=\S+ )*(?:\.venv/bin/)?((?:layerskip-vllm|vllm|make|python|pip|torchrun) .*)"
)
"""A command of ours or of a tool that the tests know, after assignments of variables."""


class Block(NamedTuple):
    """A fenced block, or a command inside a sentence."""

    page: str
    language: str
    text: str


class Command(NamedTuple):
    """One command line as words, without assignments before it."""

    page: str
    words: list[str]

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(*languages: str) -> list[Block]:
    """The fenced blocks in these languages; "" is one without a language."""
    return [
        Block(name_of(page), language, text)
        for page in PAGES
        for language, text in FENCED.findall(page.read_text(encoding="utf-8"))
        if language in languages
    ]


def commands_in(block: Block) -> Iterator[Command]:
    """The known commands of a shell block."""
    for line in block.text.replace("\\\n", " ").replace(" && ", "\n").splitlines():
        if found := COMMAND.match(line):
            yield Command(block.page, shlex.split(found[1], comments=True))


def fenced_commands() -> list[Command]:
    return [command for block in blocks("", "bash") for command in commands_in(block)]


def inline_commands() -> list[Command]:
    """Commands inside sentences, for example `layerskip-vllm doctor [MODEL]`."""
    found = []
    for page in PAGES:
        prose = FENCED.sub("", page.read_text(encoding="utf-8"))
        for text in INLINE.findall(prose):
            words = shlex.split(" ".join(re.sub(r"[\[\],]", " ", text).split()))
            found.append(Command(name_of(page), words))
    return found
