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
        "Keeps the scheduler's token budget, because we need no new slots.",
        ("self.speculative_config.max_num_new_slots_for_drafting",),
        until="0.32",
    ),
    Reads(
        f"{VLLM_CONFIG}._set_max_num_scheduled_tokens",
        "Keeps the scheduler's token budget, but refuses a budget of K tokens or fewer.",
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
        "Keeps that schedule on runner V1 because of our method's name.",
        ("'draft_model'",),
        since="0.33",
    ),
    Reads(
        f"{VLLM_CONFIG}._maybe_disable_dynamic_sd_for_data_parallel",
        "Drops that schedule under data parallelism, so new requests are padded there. A step with "
        "such a request runs the full forward.",
        ("self.parallel_config.data_parallel_size <= 1",),
    ),
    Takes(
        "vllm.config.scheduler:SchedulerConfig.get_scheduler_cls",
        "Resolves the scheduler class that we name.",
    ),
    Sets(
        f"{SCHEDULER}.__init__",
        "Read by our scheduler; it raises the lookahead by one, for the early layers' KV of d_K.",
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
        "Shares one list of placeholders; we replace a request's list with a shorter one.",
        ("request.spec_token_ids", "self._spec_token_placeholders"),
    ),
    Takes(
        f"{SCHEDULER}.update_draft_token_ids",
        "Overridden, original called: cuts each request's drafts to its limit.",
        positional=("draft_token_ids",),
    ),
    Has(
        "vllm.v1.outputs:DraftTokenIds",
        "The drafts of a step; we cut them in place.",
        ("req_ids", "draft_token_ids"),
    ),
    Calls(
        "vllm.v1.engine.core:EngineCore.post_step",
        "Calls ours if steps are synchronous.",
        "self.scheduler.update_draft_token_ids",
        num_positional=1,
    ),
    Calls(
        "vllm.v1.engine.core:EngineCore.__init__",
        "Calls our factory as it would a class, with these arguments by name.",
        "Scheduler",
        keyword=("vllm_config", "kv_cache_config", "structured_output_manager", "block_size"),
    ),
    Has(VLLM_CONFIG, "Holds the tokens that end a thought.", ("reasoning_config",)),
    Has(
        "vllm.config.scheduler:SchedulerConfig",
        "Chooses between our two schedulers.",
        ("async_scheduling",),
    ),
    Has(
        "vllm.v1.core.sched.output:SchedulerOutput",
        "If set, runner V2 proposes with K = 0 whatever we chose, because no request can use a "
        "draft.",
        ("skip_drafts",),
        since="0.33",
    ),
    Reads(
        f"{SCHEDULER}._drafts_unused",
        "If a request ends with the step, we choose no draft for it either.",
        ("request.num_output_tokens + 1", "min_num_output_tokens >= request.max_tokens"),
        since="0.33",
    ),
    Takes(
        f"{SCHEDULER}.update_from_output",
        "Overridden, original called: measures the time between steps.",
        positional=("scheduler_output", "model_runner_output"),
    ),
    Takes(
        f"{SCHEDULER}.make_spec_decoding_stats",
        "Overridden, original called: counts each request's drafted and accepted tokens.",
        positional=("spec_decoding_stats",),
        keyword=(
            *("num_draft_tokens", "num_accepted_tokens"),
            *("num_invalid_spec_tokens", "request_id"),
        ),
    ),
    Calls(
        f"{SCHEDULER}.update_from_output",
        "Calls ours for each request that had drafts, even if statistics are off.",
        "self.make_spec_decoding_stats",
        num_positional=1,
        keyword=("num_draft_tokens", "num_accepted_tokens", "request_id"),
    ),
    Takes(
        f"{SCHEDULER}.add_request",
        "Overridden, original called: reads the request's draft limit once.",
        positional=("request",),
    ),
    *(
        Takes(
            f"{scheduler}._update_request_with_output",
            "Overridden, original called: no token after an answer's end counts as computed.",
            positional=("request", "new_token_ids", "is_stale"),
        )
        for scheduler in (SCHEDULER, ASYNC_SCHEDULER)
    ),
    Calls(
        f"{SCHEDULER}.update_from_output",
        "Calls ours before a session continues from its computed tokens.",
        "self._update_request_with_output",
        num_positional=2,
        keyword=("is_stale",),
    ),
    Reads(
        f"{SCHEDULER}._handle_stopped_request",
        "A session continues from there. We keep all tokens of an answer except the last one.",
        ("request.num_computed_tokens - request.num_output_placeholders",),
    ),
    Takes(
        f"{SCHEDULER}._update_request_as_session",
        "Overridden, original called: each input of a session has its own draft limit.",
        positional=("session", "update"),
    ),
    Takes(
        f"{SCHEDULER}._handle_stopped_request",
        "Overridden, original called: collects continuing sessions, for which it returns False.",
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
        "A request drafts only in the first status; in the second, a session waits for its next "
        "input.",
        ("RUNNING", "WAITING_FOR_STREAMING_REQ"),
    ),
    Takes(
        f"{SCHEDULER}.has_requests",
        "Overridden, original called: also true if a step must answer a session's refused input.",
    ),
    *(
        Calls(f"{ENGINE_CORE}.{method}", "Calls ours.", "self.scheduler.has_requests")
        for method in ("step", "step_with_batch_queue")
    ),
    Sets(f"{SCHEDULER}.__init__", "Limits the length of a session.", ("max_model_len",)),
    Sets(
        f"{REQUEST}.__init__",
        "A session's waiting inputs, and the client that gets its answers.",
        ("streaming_queue", "resumable", "client_index", "prompt_token_ids"),
    ),
    Has("vllm.v1.request:StreamingUpdate", "A waiting input.", ("prompt_token_ids",)),
    Has(
        "vllm.v1.engine:EngineCoreOutput",
        "The answer to a refused input.",
        ("request_id", "new_token_ids", "finish_reason"),
    ),
    Has("vllm.v1.engine:EngineCoreOutputs", "A step's answers to one client.", ("outputs",)),
    Has("vllm.v1.engine:FinishReason", "The finish reason of a refused input.", ("ERROR",)),
    Takes(
        f"{SCHEDULER}._free_request",
        "Overridden, original called: removes the request's draft limit.",
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
        "vLLM 0.32 counts drafts of a multi-token end of thinking as accepted, so we decode "
        "requests with a thinking budget plainly.",
        properties=("reasoning_end_token_ids",),
    ),
    Has(
        "vllm.sampling_params:SamplingParams",
        "Drafts stay below `min_tokens` and `max_tokens`; a thinking budget may rule them out.",
        ("min_tokens", "max_tokens", "thinking_token_budget", "extra_args"),
    ),
    Has(
        "vllm.v1.core.sched.output:SchedulerOutput",
        "Names K of the step and the requests that continue. It carries each request's draft limit "
        "to the workers as an attribute.",
        (
            *("scheduled_cached_reqs", "scheduled_new_reqs", "num_scheduled_tokens"),
            "num_spec_tokens_to_schedule",
        ),
    ),
    Has(
        "vllm.v1.core.sched.output:CachedRequestData",
        "Names the requests that keep their blocks from the last step.",
        ("req_ids", "resumed_req_ids"),
    ),
)
