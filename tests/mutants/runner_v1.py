"""Faults in model runner V1."""

from tests.mutants.fault import EXITS, Fault

SCENARIOS = ("engine/test_scenarios.py::test_requests_of_unequal_length",)
CHUNKED = ("engine/test_scenarios.py::test_chunked_prompts_mix_with_decodes",)
PROPOSER = "runner_v1/proposer.py"
RUNNER = "runner_v1/runner.py"

FAULTS = [
    Fault(
        "verification resumes at another exit than the draft's",
        "runner_v1/runner.py",
        "self.drafter.verify(entries, positions, batch.exit_index)",
        "self.drafter.verify(entries, positions, 0)",
        EXITS,
    ),
    Fault(
        "a request that was preempted resumes",
        RUNNER,
        "set(cached.req_ids) - set(cached.resumed_req_ids)",
        "set(cached.req_ids)",
        ("unit/test_resumption.py",),
    ),
    Fault(
        "the last draft has no exit state",
        PROPOSER,
        "with_last_draft=self.use_exit_query_cache",
        "with_last_draft=False",
        SCENARIOS,
    ),
    Fault(
        "V1 hides no generator from the host",
        RUNNER,
        "for row in discarded.tolist() if row in generators",
        "for row in []",
        ("engine/test_seeded_scenarios.py::test_prompts_in_chunks_beside_decodes",),
    ),
    Fault(
        "prompts draft before their end",
        RUNNER,
        "np.where(self.discard_request_mask.np[:num_reqs], -1, limits)",
        "np.array(limits)",
        CHUNKED,
    ),
]
