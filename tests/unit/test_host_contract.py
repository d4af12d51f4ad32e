"""vLLM still has the internals that the plugin uses, as listed in `tests/unit/contract/`."""

import pytest

from tests.unit.contract.areas import CONTRACT
from tests.unit.contract.configuration import ENGINE_ARGS, SPECULATIVE
from tests.unit.contract.expectations import Admits, Calls, Has, InOrder, Reads, Sets, Takes
from tests.unit.contract.runner_v1 import RUNNER

WHY = "A test."


@pytest.mark.parametrize("expectation", CONTRACT, ids=str)
def test_vllm_still_offers_what_the_plugin_uses(expectation):
    assert expectation.faults() == []


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
    assert renamed.faults() != []
