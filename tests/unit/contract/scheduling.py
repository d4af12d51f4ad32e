"""Scheduling: `scheduling/`, and how vLLM's scheduler reads our configuration."""

from tests.unit.contract.configuration import VLLM_CONFIG
from tests.unit.contract.expectations import Has, Reads

SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"

EXPECTATIONS = (
    Reads(
        f"{VLLM_CONFIG}._set_max_num_scheduled_tokens",
        "The token budget stays the scheduler's, as we need no new slots.",
        ("self.speculative_config.max_num_new_slots_for_drafting",),
    ),
    Reads(
        f"{SCHEDULER}.schedule",
        "Reserves no slots for us.",
        ("spec.max_num_new_slots_for_drafting",),
    ),
    Reads(
        f"{SCHEDULER}.schedule",
        "Pads new requests with placeholder drafts only without a schedule of K by batch size, so "
        "we set one.",
        ("self.dynamic_sd_lookup",),
    ),
    Has(
        "vllm.v1.core.sched.output:SchedulerOutput",
        "K of the step, and which requests continue.",
        ("scheduled_cached_reqs", "num_spec_tokens_to_schedule"),
    ),
    Has(
        "vllm.v1.core.sched.output:CachedRequestData",
        "Says which requests keep their blocks from the last step.",
        ("req_ids", "resumed_req_ids"),
    ),
)
