"""Scheduling: `scheduling/`, and how vLLM's scheduler reads our configuration."""

from tests.unit.contract.configuration import VLLM_CONFIG
from tests.unit.contract.expectations import Calls, Has, Reads, Sets, Takes

SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
ASYNC_SCHEDULER = "vllm.v1.core.sched.async_scheduler:AsyncScheduler"
REQUEST = "vllm.v1.request:Request"
ENGINE_CORE = "vllm.v1.engine.core:EngineCore"

EXPECTATIONS = (
    Reads(
        f"{VLLM_CONFIG}._set_max_num_scheduled_tokens",
        "The token budget stays the scheduler's, as we need no new slots.",
        ("self.speculative_config.max_num_new_slots_for_drafting",),
        until="0.32",
    ),
    Reads(
        f"{VLLM_CONFIG}._set_max_num_scheduled_tokens",
        "The token budget stays the scheduler's; vLLM refuses one of no more than K tokens.",
        ("self.num_lookahead_tokens",),
        since="0.33",
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
    Reads(
        f"{VLLM_CONFIG}._maybe_disable_dynamic_sd_for_v1",
        "Keeps that schedule on runner V1 for our method's name.",
        ("'draft_model'",),
        since="0.33",
    ),
    Reads(
        f"{VLLM_CONFIG}._maybe_disable_dynamic_sd_for_data_parallel",
        "Drops it under data parallelism, where new requests are padded after all; a step with "
        "such a request runs the full forward.",
        ("self.parallel_config.data_parallel_size <= 1",),
    ),
    Takes(
        "vllm.config.scheduler:SchedulerConfig.get_scheduler_cls",
        "Resolves the scheduler class that we name.",
    ),
    Sets(
        f"{SCHEDULER}.__init__",
        "Read by our scheduler; the lookahead is raised by one, for the early layers' KV of d_K.",
        ("num_spec_tokens", "num_lookahead_tokens", "requests", "vllm_config"),
    ),
    Reads(
        f"{SCHEDULER}.schedule",
        "Reserves the lookahead for every request.",
        ("self.num_lookahead_tokens",),
    ),
    *(
        Takes(
            f"{scheduler}._update_after_schedule",
            "Overridden, original called: K is chosen before the placeholders are made.",
            positional=("scheduler_output",),
        )
        for scheduler in (SCHEDULER, ASYNC_SCHEDULER)
    ),
    Calls(
        f"{SCHEDULER}.schedule",
        "Calls ours once the output is complete.",
        "self._update_after_schedule",
        num_positional=1,
    ),
    Reads(
        f"{ASYNC_SCHEDULER}._update_after_schedule",
        "Makes as many placeholders as we chose.",
        ("scheduler_output.num_spec_tokens_to_schedule",),
    ),
    Reads(
        f"{ASYNC_SCHEDULER}._update_after_schedule",
        "Shares one list of placeholders; we replace a request's by a shorter one.",
        ("request.spec_token_ids", "self._spec_token_placeholders"),
    ),
    Takes(
        f"{SCHEDULER}.update_draft_token_ids",
        "Overridden, original called: no more drafts of a request than it may have.",
        positional=("draft_token_ids",),
    ),
    Has(
        "vllm.v1.outputs:DraftTokenIds",
        "The drafts of a step; we cut them in place.",
        ("req_ids", "draft_token_ids"),
    ),
    Calls(
        "vllm.v1.engine.core:EngineCore.post_step",
        "Calls ours where steps are synchronous.",
        "self.scheduler.update_draft_token_ids",
        num_positional=1,
    ),
    Calls(
        "vllm.v1.engine.core:EngineCore.__init__",
        "Calls our factory, which looks like a class, by name.",
        "Scheduler",
        keyword=("vllm_config", "kv_cache_config", "structured_output_manager", "block_size"),
    ),
    Has(VLLM_CONFIG, "Markers of a thought.", ("reasoning_config",)),
    Has(
        "vllm.config.scheduler:SchedulerConfig",
        "Chooses between our two schedulers.",
        ("async_scheduling",),
    ),
    Has(
        "vllm.v1.core.sched.output:SchedulerOutput",
        "In such a step runner V2 proposes with K = 0, whatever we chose: no request can use a "
        "draft.",
        ("skip_drafts",),
        since="0.33",
    ),
    Reads(
        f"{SCHEDULER}._drafts_unused",
        "Where a request ends with the step, we choose no draft for it either.",
        ("request.num_output_tokens + 1", "min_num_output_tokens >= request.max_tokens"),
        since="0.33",
    ),
    Takes(
        f"{SCHEDULER}.update_from_output",
        "Overridden, original called: the time between steps.",
        positional=("scheduler_output", "model_runner_output"),
    ),
    Takes(
        f"{SCHEDULER}.make_spec_decoding_stats",
        "Overridden, original called: each request's drafted and accepted tokens.",
        positional=("spec_decoding_stats",),
        keyword=(
            *("num_draft_tokens", "num_accepted_tokens"),
            *("num_invalid_spec_tokens", "request_id"),
        ),
    ),
    Calls(
        f"{SCHEDULER}.update_from_output",
        "Calls ours for each request that had drafts, also without statistics.",
        "self.make_spec_decoding_stats",
        num_positional=1,
        keyword=("num_draft_tokens", "num_accepted_tokens", "request_id"),
    ),
    Takes(
        f"{SCHEDULER}.add_request",
        "Overridden, original called: the request's limit of drafts is read once.",
        positional=("request",),
    ),
    *(
        Takes(
            f"{scheduler}._update_request_with_output",
            "Overridden, original called: what follows an answer's end is not computed.",
            positional=("request", "new_token_ids", "is_stale"),
        )
        for scheduler in (SCHEDULER, ASYNC_SCHEDULER)
    ),
    Calls(
        f"{SCHEDULER}.update_from_output",
        "Calls ours before a session goes on from its computed tokens.",
        "self._update_request_with_output",
        num_positional=2,
        keyword=("is_stale",),
    ),
    Reads(
        f"{SCHEDULER}._handle_stopped_request",
        "A session goes on from there. We leave all tokens of an answer but the last one.",
        ("request.num_computed_tokens - request.num_output_placeholders",),
    ),
    Takes(
        f"{SCHEDULER}._update_request_as_session",
        "Overridden, original called: each input of a session has its own limit of drafts.",
        positional=("session", "update"),
    ),
    Takes(
        f"{SCHEDULER}._handle_stopped_request",
        "Overridden, original called: sessions whose answer has ended; False is returned for them.",
        positional=("request",),
    ),
    Takes(
        f"{SCHEDULER}._enqueue_waiting_request",
        "Called for a session that vLLM 0.32 has removed from its queues.",
        positional=("request",),
    ),
    Sets(
        f"{SCHEDULER}.__init__",
        "The queues in which a session waits for its next input, or for its turn.",
        ("waiting", "kv_holding_waiting"),
    ),
    *(
        Calls(
            f"{SCHEDULER}.{method}",
            "Calls ours when the next input's turn has come.",
            "self._update_request_as_session",
            num_positional=2,
        )
        for method in ("add_request", "_handle_stopped_request")
    ),
    Has(
        "vllm.v1.request:RequestStatus",
        "A request in another status than the first drafts no more; in the second a session waits "
        "for its next input.",
        ("RUNNING", "WAITING_FOR_STREAMING_REQ"),
    ),
    Takes(
        f"{SCHEDULER}.has_requests",
        "Overridden, original called: a step is due that answers a session's refused input.",
    ),
    *(
        Calls(f"{ENGINE_CORE}.{method}", "Asks ours.", "self.scheduler.has_requests")
        for method in ("step", "step_with_batch_queue")
    ),
    Sets(f"{SCHEDULER}.__init__", "No session may be longer.", ("max_model_len",)),
    Sets(
        f"{REQUEST}.__init__",
        "A session's waiting inputs, and whom it answers.",
        ("streaming_queue", "resumable", "client_index", "prompt_token_ids"),
    ),
    Has("vllm.v1.request:StreamingUpdate", "A waiting input.", ("prompt_token_ids",)),
    Has(
        "vllm.v1.engine:EngineCoreOutput",
        "The answer to an input that is refused.",
        ("request_id", "new_token_ids", "finish_reason"),
    ),
    Has("vllm.v1.engine:EngineCoreOutputs", "The answers of a step to a client.", ("outputs",)),
    Has("vllm.v1.engine:FinishReason", "That answer's.", ("ERROR",)),
    Takes(
        f"{SCHEDULER}._free_request",
        "Overridden, original called: the limit is removed.",
        positional=("request",),
    ),
    Sets(
        f"{REQUEST}.__init__",
        "A request's progress and parameters.",
        (
            *("request_id", "sampling_params", "max_tokens"),
            *("num_computed_tokens", "num_output_placeholders", "spec_token_ids", "status"),
        ),
    ),
    Has(REQUEST, "A request's progress.", properties=("num_tokens", "num_output_tokens")),
    Has(
        "vllm.config.reasoning:ReasoningConfig",
        "vLLM 0.32 counts drafts of a multi-token end of thinking as accepted, so requests with a "
        "thinking budget are decoded plainly.",
        properties=("reasoning_end_token_ids",),
    ),
    Has(
        "vllm.sampling_params:SamplingParams",
        "Drafts stay below `min_tokens` and `max_tokens`; a thinking budget may rule them out.",
        ("min_tokens", "max_tokens", "thinking_token_budget", "extra_args"),
    ),
    Has(
        "vllm.v1.core.sched.output:SchedulerOutput",
        "K of the step, and which requests continue; it carries each request's limit to the "
        "workers as an attribute.",
        (
            *("scheduled_cached_reqs", "scheduled_new_reqs", "num_scheduled_tokens"),
            "num_spec_tokens_to_schedule",
        ),
    ),
    Has(
        "vllm.v1.core.sched.output:CachedRequestData",
        "Says which requests keep their blocks from the last step.",
        ("req_ids", "resumed_req_ids"),
    ),
)
