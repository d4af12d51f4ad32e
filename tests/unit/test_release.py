"""What a release names in several places agrees, and the issue forms are forms."""

import re
from pathlib import Path

import pytest
import yaml

from layerskip_vllm.version import __version__

ROOT = Path(__file__).parents[2]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*_*.yml"))
KINDS = {"Added", "Changed", "Deprecated", "Fixed", "Removed", "Security"}


def sections() -> dict[str, str]:
    """The changelog's text by heading, in order."""
    parts = re.split(r"^## (.+)\n", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_the_changelog_begins_with_unreleased_and_this_version():
    headings = list(sections())
    assert headings[0] == "[Unreleased]"
    assert re.fullmatch(rf"\[{re.escape(__version__)}\] - \d{{4}}-\d\d-\d\d", headings[1])


def test_the_changelog_groups_changes_by_kind():
    kinds = [kind for text in sections().values() for kind in re.findall(r"^### (.+)$", text, re.M)]
    assert kinds
    assert set(kinds) <= KINDS


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    heading = f"[{citation['version']}] - {citation['date-released']}"
    assert heading == list(sections())[1]


def test_this_version_gets_security_fixes():
    series = __version__.rpartition(".")[0]
    assert f"| {series}.x | yes |" in (ROOT / "SECURITY.md").read_text()


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_has_named_fields(form):
    content = yaml.safe_load(form.read_text())
    assert content.keys() == {"name", "description", "labels", "body"}
    fields = [field for field in content["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)


def test_a_bug_report_asks_for_the_doctors_output():
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug_report.yml").read_text())
    (doctor,) = [field for field in form["body"] if field.get("id") == "doctor"]
    assert "layerskip-vllm doctor MODEL --json" in doctor["attributes"]["label"]
    assert doctor["validations"] == {"required": True}
