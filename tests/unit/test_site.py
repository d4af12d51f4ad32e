"""The documentation site builds without a dead link, and its links lead where GitHub's do."""

import importlib.util
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tests.unit.doc_blocks import ROOT

REPOSITORY = "https://example.org/repository"
IN_SITE = {"auto.md", "get-started/gpu.md", "contributing.md", "ledger.md"}


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rewritten(hooks, markdown: str, page: str) -> str:
    return hooks.on_page_markdown(
        markdown,
        SimpleNamespace(file=SimpleNamespace(src_uri=page)),
        SimpleNamespace(extra={"repository": REPOSITORY}),
        SimpleNamespace(get_file_from_path=lambda path: path if path in IN_SITE else None),
    )


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("index.md", "auto.md#while-it-serves", "auto.md#while-it-serves"),
        ("get-started/gpu.md", "../auto.md", "../auto.md"),
        ("auto.md", "../CONTRIBUTING.md", "contributing.md"),
        ("get-started/gpu.md", "../../patches/README.md", "../ledger.md"),
        ("contributing.md", "docs/auto.md", "auto.md"),
        ("auto.md", "../examples/grafana", f"{REPOSITORY}/tree/main/examples/grafana"),
        ("auto.md", "../README.md", f"{REPOSITORY}/blob/main/README.md"),
        ("ledger.md", "../LICENSE", f"{REPOSITORY}/blob/main/LICENSE"),
        ("auto.md", "#anchor", "#anchor"),
        ("auto.md", "https://arxiv.org/abs/2404.16710", "https://arxiv.org/abs/2404.16710"),
    ],
)
def test_a_link_leads_where_it_leads_on_github(hooks, page, link, expected):
    assert rewritten(hooks, f"See [this]({link}).", page) == f"See [this]({expected})."


def test_a_dead_link_to_the_repository_is_a_warning(hooks, caplog):
    rewritten(hooks, "[gone](../examples/gone.py)", "auto.md")
    assert "auto.md links to examples/gone.py, which does not exist" in caplog.text


def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stderr
    assert (tmp_path / "index.html").exists()
