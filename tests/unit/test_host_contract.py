"""vLLM has the internals that the plugin uses, as listed in `tests/unit/contract/`.

The installed release is checked always; the other supported ones where `make contract` has
downloaded their sources.
"""

import inspect
import pkgutil

import pytest

from tests.unit.contract.areas import CONTRACT
from tests.unit.contract.configuration import ENGINE_ARGS, SPECULATIVE
from tests.unit.contract.expectations import Admits, Calls, Has, InOrder, Reads, Sets, Takes
from tests.unit.contract.releases import downloaded, installed, release_of
from tests.unit.contract.runner_v1 import RUNNER

WHY = "A test."
INSTALLED = installed()
CASES = [
    pytest.param(expectation, sources, id=f"{release_of(sources)}-{expectation}")
    for sources in (INSTALLED, *downloaded())
    for expectation in CONTRACT
    if expectation.applies_to(release_of(sources))
]
OF_INSTALLED = [e for e in CONTRACT if e.applies_to(release_of(INSTALLED))]


@pytest.mark.parametrize(("expectation", "sources"), CASES)
def test_vllm_offers_what_the_plugin_uses(expectation, sources):
    assert expectation.faults(sources) == []


@pytest.mark.parametrize("expectation", OF_INSTALLED, ids=str)
def test_python_finds_what_the_sources_define(expectation):
    target = pkgutil.resolve_name(expectation.path)
    if isinstance(expectation, Takes):
        parameters = [name for name in inspect.signature(target).parameters if name != "self"]
        assert INSTALLED.parameters(expectation.path) == parameters
    if isinstance(expectation, Has):
        classes = getattr(target, "__mro__", ())
        annotated = {name for cls in classes for name in inspect.get_annotations(cls)}
        names = (*expectation.attributes, *expectation.properties)
        assert [n for n in names if n not in annotated and not hasattr(target, n)] == []


def test_each_expectation_has_a_reason_in_a_sentence():
    assert [e for e in CONTRACT if not e.reason.endswith(".") or "|" in e.reason] == []


@pytest.mark.parametrize(
    "renamed",
    [
        Takes(f"{RUNNER}._model_forward", WHY, positional=("input_ids", "renamed")),
        Takes("vllm.forward_context:set_forward_context", WHY, keyword=("renamed",)),
        Has(ENGINE_ARGS, WHY, ("renamed",)),
        Has(SPECULATIVE, WHY, properties=("compute_hash",)),
        Sets(f"{RUNNER}.__init__", WHY, ("renamed",)),
        Reads(f"{RUNNER}.sample_tokens", WHY, ("self.renamed",)),
        Calls(f"{RUNNER}.sample_tokens", WHY, "self.renamed"),
        Calls(f"{RUNNER}.sample_tokens", WHY, "self.propose_draft_token_ids", num_positional=8),
        InOrder(
            f"{ENGINE_ARGS}.create_engine_config",
            WHY,
            ("self.async_scheduling", "self.create_speculative_config"),
        ),
        Admits("vllm.config.speculative:SpeculativeMethod", WHY, ("renamed",)),
    ],
    ids=str,
)
def test_a_renamed_internal_is_detected(renamed):
    assert renamed.faults(INSTALLED) != []
