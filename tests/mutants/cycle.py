"""Faults in the cycle apart from its runners, and in models."""

from tests.mutants.fault import EXITS, SWITCHES, Fault

SCENARIOS = ("engine/test_scenarios.py::test_requests_of_unequal_length",)
HISTORY = ("engine/test_step_machine.py",)
BATCH = "spec_decode/draft_batch.py"

FAULTS = [
    Fault(
        "an observing step counts rejected drafts",
        "spec_decode/exit_matches.py",
        "is_reached = emitted >= 0",
        "is_reached = emitted >= -1",
        EXITS,
    ),
    Fault(
        "every exit drafts with the first one's layers",
        "models/split.py",
        "for index in range(exit_index):",
        "for index in range(0 * exit_index):",
        SWITCHES,
    ),
    Fault(
        "verification leaves out the layers between two exits",
        "models/split.py",
        "range(exit_index, self.num_exits - 1)",
        "range(exit_index + 1, self.num_exits - 1)",
        SWITCHES,
    ),
    Fault(
        "a layer is left out at the cut",
        "models/split.py",
        "layers=decoder.layers[exit_layers[-1] :],",
        "layers=decoder.layers[exit_layers[-1] + 1 :],",
        SCENARIOS,
    ),
    Fault(
        "the residual is lost between the segments",
        "models/segments.py",
        "return hidden_states, residual.float(), normed_states",
        "return hidden_states, hidden_states.float(), normed_states",
        SCENARIOS,
    ),
    Fault(
        "a request without an adapter gets another one's",
        "compat/worker/rows_without_adapter.py",
        "inputs = inputs.masked_fill((lora_indices_tensor < 0)[:, None], 0)",
        "pass",
        ("engine/test_lora.py",),
    ),
    Fault(
        "a slot too far within the block",
        BATCH,
        "slots * block_size + own % block_size",
        "slots * block_size + (own + 1) % block_size",
        HISTORY,
    ),
    Fault(
        "the next position's block",
        BATCH,
        "own // block_size",
        "np.minimum((own + 1) // block_size, block_table.shape[1] - 1)",
        HISTORY,
    ),
    Fault(
        "idle rows write to the first slot",
        BATCH,
        "own % block_size, padding_slot)",
        "own % block_size, 0)",
        ("engine/test_attention_metadata.py",),
    ),
    Fault(
        "exit states of another request",
        BATCH,
        "[np.repeat(rows, num_scheduled), steps]",
        "[np.repeat(rows[::-1], num_scheduled), steps]",
        SCENARIOS,
    ),
    Fault(
        "the exit state of the token before",
        BATCH,
        "[np.repeat(rows, num_scheduled), steps]",
        "[np.repeat(rows, num_scheduled), np.maximum(steps - 1, 0)]",
        SCENARIOS,
    ),
    Fault(
        "rows of the exit states are swapped",
        "spec_decode/exit_query_cache.py",
        "entries[: len(rows), step] = rows",
        "entries[: len(rows), step] = rows.flip(0)",
        SCENARIOS,
    ),
    Fault(
        "exit states live on",
        "spec_decode/exit_query_cache.py",
        "batch, self._batch = self._batch, None",
        "batch = self._batch",
        ("unit/test_exit_query_cache.py",),
    ),
    Fault(
        "a request resumes at another position",
        BATCH,
        "is_same_place & (num_scheduled",
        "(num_scheduled",
        ("unit/test_draft_batch.py",),
    ),
    Fault(
        "a draft after the last token",
        BATCH,
        "max_num_tokens - 2 - start_positions",
        "max_num_tokens - 1 - start_positions",
        ("engine/test_endings.py",),
    ),
]
