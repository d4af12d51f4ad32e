"""An engine that a failing test leaves open would take the process's groups down later on."""

import pytest

from tests.engine import engines


@pytest.fixture(autouse=True)
def close_what_the_test_opened():
    opened_by_fixtures = list(engines.OPEN)
    yield
    for llm in [llm for llm in engines.OPEN if llm not in opened_by_fixtures]:
        engines.close(llm)
