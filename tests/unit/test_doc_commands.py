"""The commands and code blocks of README.md and docs/ name flags, targets and names that exist.

Nothing is executed: arguments are parsed, and Python is compiled.
"""

import argparse
import ast
import importlib
import importlib.util
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml
from vllm.entrypoints.cli.benchmark.serve import BenchmarkServingSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser

from layerskip_vllm import plugin
from layerskip_vllm.cli import COMMANDS
from layerskip_vllm.doctor.flags import serve_parser
from layerskip_vllm.training.recipe import Recipe, load_recipe
from tests.unit.doc_blocks import (
    PAGES,
    ROOT,
    Command,
    blocks,
    fenced_commands,
    inline_commands,
    name_of,
)

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
FENCED, INLINE = fenced_commands(), inline_commands()
FOOTER = "Blocks on this page: "


def those_of(commands: list[Command], *start: str) -> list[Command]:
    """Each once: the commands that begin with these words."""
    found = {str(c): c for c in commands if c.words[: len(start)] == [*start]}
    return [*found.values()]


def ours_in(commands: list[Command]) -> list[Command]:
    """Those of `layerskip-vllm`, also behind `torchrun`."""
    name = "layerskip-vllm"
    cut = [
        Command(c.page, c.words[c.words.index(name) :])
        for c in commands
        if name in c.words and not c.words[0].startswith("pip")
    ]
    return those_of(cut, name)


@cache
def our_parser(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"layerskip-vllm {command}")
    importlib.import_module(COMMANDS[command][0]).add_arguments(parser)
    return parser


@cache
def vllm_parser() -> FlexibleArgumentParser:
    plugin.register()
    return serve_parser()


def flags_of(command: Command) -> list[str]:
    return [word.partition("=")[0] for word in command.words if word.startswith("--")]


def assert_known(parser: argparse.ArgumentParser, command: Command) -> None:
    unknown = [f for f in flags_of(command) if f not in parser._option_string_actions]
    assert not unknown, f"{command}: {unknown}"


@pytest.mark.parametrize("command", ours_in(FENCED), ids=str)
def test_a_block_of_ours_parses(command):
    our_parser(command.words[1]).parse_args(command.words[2:])


@pytest.mark.parametrize("command", ours_in(INLINE), ids=str)
def test_a_command_of_ours_in_a_sentence_has_known_flags(command):
    assert_known(our_parser(command.words[1]), command)


@pytest.mark.parametrize("command", those_of(FENCED, "vllm", "serve"), ids=str)
def test_a_block_that_serves_parses(command):
    vllm_parser().parse_args(command.words[1:])


@pytest.mark.parametrize("command", those_of(FENCED, "vllm", "bench", "serve"), ids=str)
def test_a_block_that_measures_a_server_parses(command):
    parser = FlexibleArgumentParser(exit_on_error=False)
    BenchmarkServingSubcommand.add_cli_args(parser)
    parser.parse_args(command.words[3:])


@pytest.mark.parametrize("command", those_of(FENCED + INLINE, "make"), ids=str)
def test_make_has_the_targets_and_variables(command):
    targets = re.findall(r"^([a-z-]+):", MAKEFILE, re.M)
    variables = re.findall(r"^([A-Z_]+) \?=", MAKEFILE, re.M)
    for word in command.words[1:]:
        name, is_assignment, _ = word.partition("=")
        assert name in (variables if is_assignment else targets), word


@pytest.mark.parametrize("command", those_of(FENCED + INLINE, "python", "-m"), ids=str)
def test_python_runs_modules_that_exist(command):
    """Their flags occur in the sources of the module's top folder."""
    module = command.words[2]
    assert importlib.util.find_spec(module), module
    top = module.partition(".")[0]
    if (ROOT / top).is_dir():
        sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / top).rglob("*.py"))
        missing = [f for f in flags_of(command) if f != "--help" and f'"{f}"' not in sources]
        assert not missing


def test_pip_installs_extras_that_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = set(re.findall(r"(?:layerskip-vllm|\.)\[(\w+)\]", pages))
    assert named
    assert named <= {*extras}


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.page)
def test_python_blocks_compile_and_import_what_exists(block):
    tree = ast.parse(block.text)
    compile(tree, block.page, "exec")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("layerskip_vllm"):
            names = {alias.name for alias in node.names}
            assert names <= defined_in(node.module), node.module


def defined_in(module: str) -> set[str]:
    """The classes and functions that a module of ours defines at its top."""
    source = ROOT / Path(*module.split(".")).with_suffix(".py")
    body = ast.parse(source.read_text(encoding="utf-8")).body
    return {n.name for n in body if isinstance(n, ast.ClassDef | ast.FunctionDef)}


RECIPES = [b for b in blocks("yaml") if {"model", "data", "trainer"} <= {*yaml.safe_load(b.text)}]


@pytest.mark.parametrize("block", RECIPES, ids=lambda block: block.page)
def test_whole_recipes_load(block, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(block.text, encoding="utf-8")
    assert isinstance(load_recipe(recipe), Recipe)


def test_every_kind_of_block_is_found():
    for found in (RECIPES, blocks("python"), ours_in(FENCED), those_of(FENCED, "vllm", "serve")):
        assert len(found) > 1


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=name_of)
def test_a_page_with_commands_says_how_they_are_checked(page):
    has_blocks = any(b.page == name_of(page) for b in blocks("bash", "python", "yaml"))
    last = page.read_text(encoding="utf-8").rstrip().rpartition("\n\n")[2]
    assert last.startswith(FOOTER) == has_blocks
