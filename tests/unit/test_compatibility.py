"""Each feature of docs/compatibility.md names tests that exist, and its table is up to date."""

import re

import pytest

from layerskip_vllm.compat.releases import SUPPORTED_VLLM
from tests.unit.compatibility import PAGE, ROOT, STATUSES, read_features, updated

FEATURES = read_features()

each_feature = pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature["feature"])


@each_feature
def test_each_feature_names_existing_tests(feature):
    assert feature["tests"]
    for test in feature["tests"]:
        file, _, name = test.partition("::")
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        defined = re.findall(r"^(?:async )?def (test_\w+)\(", source, re.M)
        assert (name in defined) if name else defined, test


@each_feature
def test_each_feature_has_known_keys_and_values(feature):
    known = {"feature", "vllm", "v1", "v1_note", "v2", "v2_note", "tests"}
    assert feature.keys() <= known
    assert {feature["v1"], feature["v2"]} <= {*STATUSES}
    assert {*feature["vllm"]} <= {*SUPPORTED_VLLM}


def test_each_feature_is_listed_once():
    names = [feature["feature"] for feature in FEATURES]
    assert sorted(set(names)) == sorted(names)


def test_the_table_is_up_to_date():
    page = PAGE.read_text(encoding="utf-8")
    assert updated(page) == page, "run `python -m tests.unit.compatibility`"


def test_a_stale_table_is_written_anew():
    page = PAGE.read_text(encoding="utf-8")
    stale = page.replace("| works |", "| refused at start |")
    assert stale != page
    assert updated(stale) == page
