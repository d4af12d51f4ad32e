"""`make lock`: which wheels get a hash, and which hashes stay."""

import runpy
from pathlib import Path

import pytest
from packaging.utils import parse_wheel_filename

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "requirements" / "hashes.py"))
OLD, NEW, OTHER_INDEX = ("a" * 64, "b" * 64, "c" * 64)
LOCK = f"""# A comment
some.package==1.0 \\
    --hash=sha256:{OLD} \\
    --hash=sha256:{OTHER_INDEX}
another==2.0
"""


@pytest.mark.parametrize(
    ("tags", "is_installable"),
    [
        ("py3-none-any", True),
        ("py2.py3-none-any", True),
        ("py311-none-any", True),
        ("cp311-cp311-manylinux_2_28_x86_64", True),
        ("cp312-cp312-linux_x86_64", True),
        ("cp38-abi3-manylinux2014_x86_64.manylinux_2_17_x86_64", True),
        ("py2-none-any", False),
        ("cp310-cp310-manylinux_2_28_x86_64", False),
        ("cp313-cp313t-manylinux_2_28_x86_64", False),
        ("cp313-abi3-manylinux_2_28_x86_64", False),
        ("cp311-cp311-manylinux_2_28_aarch64", False),
        ("cp311-cp311-musllinux_1_2_x86_64", False),
        ("cp311-cp311-win_amd64", False),
        ("py313-none-any", False),
    ],
)
def test_wheels_of_the_supported_platform_get_a_hash(tags, is_installable):
    wheel_tags = parse_wheel_filename(f"package-1.0-{tags}.whl")[3]
    assert any(map(SCRIPT["is_installable"], wheel_tags)) is is_installable


def test_hashes_of_another_index_stay_while_the_pin_stays():
    written = SCRIPT["rewritten"](LOCK, {"some-package": {OLD, NEW}, "another": {NEW}})
    hashes = SCRIPT["pins_with_hashes"](written)
    assert hashes == {"some-package": {OLD, NEW, OTHER_INDEX}, "another": {NEW}}
    assert written.startswith("# A comment\nsome.package==1.0 \\\n    --hash")


def test_a_changed_pin_loses_its_old_hashes():
    written = SCRIPT["rewritten"](LOCK, {"some-package": {NEW}, "another": {NEW}})
    assert SCRIPT["pins_with_hashes"](written)["some-package"] == {NEW}
