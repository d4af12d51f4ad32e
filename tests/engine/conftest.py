"""Engine tests share plain outputs, and close the engines that a failed test left open."""

import os

import pytest

from tests.engine import engines, plain


@pytest.fixture(scope="session", autouse=True)
def kept_plain_outputs(tmp_path_factory):
    """One folder for all processes of a test run."""
    folder = tmp_path_factory.getbasetemp()
    plain.directory = (
        folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    ) / "plain-outputs"
    plain.directory.mkdir(exist_ok=True)
    yield
    plain.directory = None


@pytest.fixture(autouse=True)
def close_engines_left_open():
    opened_by_fixtures = list(engines.OPEN)
    yield
    # Closed later, they would destroy the process groups of newer engines.
    for llm in [llm for llm in engines.OPEN if llm not in opened_by_fixtures]:
        engines.close(llm)
