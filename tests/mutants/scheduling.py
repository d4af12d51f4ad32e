"""Faults in the scheduler and its policy."""

from tests.mutants.fault import Fault

TOO_LONG = (
    "engine/test_sessions.py::test_an_input_beyond_max_model_len_is_refused_and_its_session_goes_on"
)
OUTLIVE = (
    "engine/test_async_scheduling.py::test_sessions_outlive_a_preemption_before_their_last_tokens"
)
SCHEDULER = "scheduling/scheduler.py"

FAULTS = [
    Fault(
        "a session that was preempted before its answer's end is lost",
        "scheduling/sessions.py",
        "if not is_queued and not session.is_finished():",
        "if False:",
        (OUTLIVE,),
        "v2",
    ),
    Fault(
        "a session keeps of its answer what is computed",
        "scheduling/sessions.py",
        "session.num_computed_tokens = session.num_tokens - 1\n",
        "pass\n",
        (OUTLIVE,),
        "v2",
    ),
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
