"""Each backend of structured outputs that vLLM speculates with gives plain decoding's output."""

import pytest
from vllm.sampling_params import StructuredOutputsParams

from tests.engine.engines import (
    as_prompts,
    assert_speculated,
    both,
    greedy,
    random_prompts,
)

SCHEMA = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "name": {"type": "string"}},
    "required": ["colour", "name"],
    "additionalProperties": False,
}
BACKENDS = ["auto", "guidance", "outlines"]
OF_ALL = [
    {"json": SCHEMA},
    {"regex": "[a-f]{8}-[0-9]{4}(-[x-z]{2}){3}"},
    {"regex": "[ -~]{50}"},
    {"choice": ["apple", "apricot", "banana"]},
]
OF_ONE = {"guidance": [{"grammar": 'start: word "," word\nword: /[a-m][a-z][n-z]/ | "yes"'}]}


@pytest.mark.parametrize(
    ("backend", "exit_layer"),
    [
        *(pytest.param(backend, 5, marks=pytest.mark.on_v2) for backend in BACKENDS),
        pytest.param("guidance", [1, 3, 5], id="guidance-self:auto"),
    ],
)
def test_a_backend_acts_as_without_drafts(random_llama, backend, exit_layer):
    """Other tests have `xgrammar`."""
    constraints = [*OF_ALL, *OF_ONE.get(backend, [])]
    params = [greedy(70, structured_outputs=StructuredOutputsParams(**c)) for c in constraints]
    prompts = as_prompts(random_prompts([5, 17, 40, 9, 3, 20], seed=3)[: len(params) + 1])
    expected, actual, counted = both(
        random_llama(late_scale=0.3),
        prompts,
        [*params, greedy(70)],
        exit_layer,
        structured_outputs_config={"backend": backend},
    )
    assert actual == expected
    assert_speculated(counted)
