"""A model and prompts whose plain output is known."""

import pytest

from tests.engine.engines import random_prompts
from tests.parallel import jobs


@pytest.fixture(scope="module")
def two_cores():
    """vLLM's CPU workers share memory only if each is bound to its own core."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
        yield


@pytest.fixture(scope="module")
def model(random_llama):
    return random_llama(num_layers=6, late_scale=0.3)


@pytest.fixture(scope="module")
def token_prompts():
    return random_prompts([5, 17, 40, 3])


@pytest.fixture(scope="module")
def plain_token_ids(model, token_prompts):
    return jobs.plain_outputs(model, token_prompts)
