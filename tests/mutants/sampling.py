"""Faults in sampling and comparing on model runner V1."""

from tests.mutants.fault import Fault

FAULTS = [
    Fault(
        "drafts that wait for the token budget lose their probabilities",
        "spec_decode/draft_probs.py",
        "{req_id: probs.clone() for req_id, probs in self._by_request.items()}",
        "{}",
        ("engine/test_skipped_drafts.py",),
    ),
    Fault(
        "draws for tokens that are not emitted are kept",
        "runner_v1/sampled_rows.py",
        "self[row].set_state(self._state_before[row])",
        "pass",
        ("engine/test_seeded.py",),
    ),
    Fault(
        "a row does not know the drafts before it",
        "runner_v1/row_processors.py",
        "request.output_token_ids + draft[:k]",
        "request.output_token_ids",
        ("engine/test_endings.py",),
    ),
    Fault(
        "penalties do not count drafts",
        "runner_v1/sampled_rows.py",
        "output + draft[:k]",
        "output",
        ("engine/test_seeded.py",),
    ),
    Fault(
        "rows of the last step keep their logits processors",
        "runner_v1/row_processors.py",
        "list(self._rows - rows)",
        "[]",
        ("engine/test_seeded.py",),
    ),
    Fault(
        "requests in the middle of their prompts draw",
        "runner_v1/sampled_rows.py",
        "if not is_discarded[req_index]:",
        "if True:",
        ("engine/test_seeded_scenarios.py::test_prompts_in_chunks_beside_decodes",),
    ),
]
