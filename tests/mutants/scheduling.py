"""Faults in the scheduler and its policy."""

from tests.mutants.fault import Fault

TOO_LONG = (
    "engine/test_sessions.py::test_an_input_beyond_max_model_len_is_refused_and_its_session_goes_on"
)
SCHEDULER = "scheduling/scheduler.py"

FAULTS = [
    Fault(
        "a session's input that is too long is let through",
        "scheduling/sessions.py",
        "if num_tokens < self.max_model_len:",
        "if num_tokens <= self.max_model_len:",
        (TOO_LONG,),
    ),
    Fault(
        "no slot for the last draft",
        SCHEDULER,
        "self.num_lookahead_tokens += 1",
        "self.num_lookahead_tokens += 0",
        ("engine/test_endings.py",),
    ),
    Fault(
        "a request's own limit is ignored",
        SCHEDULER,
        "for req_id, limit in limits.items() if limit < num_drafts",
        "for req_id, limit in limits.items() if limit < 0",
        ("engine/test_requests.py::test_each_request_limits_its_drafts",),
    ),
]
