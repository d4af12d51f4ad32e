"""Faults in model runner V2."""

from tests.mutants.fault import EXITS, Fault

CYCLE = ("engine/test_graphs.py::test_a_cycle_is_two_graphs",)
STATE = "runner_v2/model_state.py"

FAULTS = [
    Fault(
        "verification resumes at another exit than the draft's, on V2",
        "runner_v2/model_state.py",
        "self.exit_index = int(exits[0])",
        "self.exit_index = 0",
        EXITS,
        "v2",
    ),
    Fault(
        "requests resume together from states of different exits",
        STATE,
        "            and (exits == exits[0]).all()\n",
        "",
        ("engine/test_scenarios.py::test_chunked_prompts_mix_with_decodes[llama-auto]",),
        "v2",
    ),
    Fault(
        "each exit's batches resume by the first one's graphs",
        "runner_v2/graphs.py",
        "return at_exit(desc, self.exit_index) if resumes else desc",
        "return desc",
        ("engine/test_graphs.py::test_each_exit_has_its_graphs",),
        "v2",
    ),
    Fault(
        "a slot's new owner has the old one's exit states",
        STATE,
        "self.num_exit_states[req_index] = 0",
        "pass",
        ("engine/test_exact.py::test_short_prompts_one_after_another",),
        "v2",
    ),
    Fault(
        "a graph resumes from other requests' exit states",
        STATE,
        "self._slots[: input_batch.num_reqs] = input_batch.idx_mapping",
        "self._slots[: input_batch.num_reqs] = input_batch.idx_mapping.flip(0)",
        CYCLE,
        "v2",
    ),
    Fault(
        "a plain step resumes",
        STATE,
        "return self.graphs_resume and num_tokens > num_reqs",
        "return self.graphs_resume",
        ("engine/test_graphs.py::test_each_draft_length_has_its_graphs",),
        "v2",
    ),
    Fault(
        "a graph resumes without exit states",
        "runner_v2/runner.py",
        "query_len != 1 and not model_state.may_resume",
        "False",
        ("engine/test_graphs.py::test_without_exit_states_no_graph_resumes",),
        "v2",
    ),
    Fault(
        "drafts follow rejected ones",
        "runner_v2/early_steps.py",
        "self._target_seq_lens[:num_reqs] - self._num_rejected[:num_reqs]",
        "self._target_seq_lens[:num_reqs] + 0",
        CYCLE,
        "v2",
    ),
    Fault(
        "the host waits for the rejected drafts",
        "runner_v2/speculator.py",
        "self._num_reqs.fill_(num_reqs)",
        "self._num_reqs.fill_(num_reqs + 0 * int(num_rejected.sum()))",
        ("engine/test_graph_safety.py::test_a_step_waits_for_nothing_on_the_device",),
        "v2",
    ),
]
