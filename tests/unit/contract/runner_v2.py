"""Runner and model state of V2: `runner_v2/runner.py` and `runner_v2/model_state.py`."""

from tests.unit.contract.expectations import Calls, Has, InOrder, Reads, Sets, Takes

GPU = "vllm.v1.worker.gpu"
RUNNER_V2 = f"{GPU}.model_runner:GPUModelRunner"
CPU_RUNNER_V2 = "vllm.v1.worker.cpu.model_runner:CPUModelRunner"
MODEL_STATE = f"{GPU}.model_states.default:DefaultModelState"
INPUT_BATCH_V2 = f"{GPU}.input_batch:InputBatch"

RUNNERS = (
    *(
        Takes(
            runner,
            "`LayerSkipRunnerMixin` comes before it.",
            positional=("vllm_config", "device"),
        )
        for runner in (RUNNER_V2, CPU_RUNNER_V2)
    ),
    Calls(
        "vllm.v1.worker.gpu_worker:Worker._make_model_runner",
        "Overridden on CUDA: our runner takes the same arguments.",
        "GPUModelRunnerV2",
        num_positional=2,
    ),
    Sets(
        "vllm.v1.worker.gpu_worker:Worker.__init__",
        "Decides which of our runners a worker makes.",
        ("use_v2_model_runner",),
    ),
    Sets(f"{RUNNER_V2}.__init__", "Replaced by our speculator.", ("speculator",)),
    Takes(f"{RUNNER_V2}.load_model", "Overridden, original called."),
    InOrder(
        f"{RUNNER_V2}.load_model",
        "Our speculator names the class of the model's state before vLLM asks for it.",
        ("self.speculator.load_model(self.model)", "init_model_state"),
    ),
    Sets(
        f"{RUNNER_V2}.load_model",
        "We pass it to our speculator at once; vLLM does so only after it has profiled memory.",
        ("model_state",),
    ),
    *(
        Reads(
            f"{RUNNER_V2}.{method}",
            "Ours is a subclass, so vLLM loads it and gives it blocks and attention groups.",
            ("isinstance(self.speculator, DraftModelSpeculator)",),
        )
        for method in ("load_model", "initialize_kv_cache")
    ),
)

STEP = (
    Takes(
        f"{RUNNER_V2}.profile_run",
        "Overridden, original called: compiles the second segment while vLLM compiles.",
    ),
    Takes(
        f"{RUNNER_V2}.gather_batch_req_state",
        "Overridden, original called: decides whether the step resumes.",
        positional=("scheduler_output", "dummy_run"),
    ),
    Has(
        f"{GPU}.model_runner:BatchReqState",
        "The batch's slots and token counts, on the host.",
        ("idx_mapping_np", "num_scheduled_tokens", "num_tokens"),
    ),
    InOrder(
        f"{RUNNER_V2}.execute_model",
        "A new request clears its slot's exit states; then we decide whether the step resumes. "
        "After this, vLLM chooses a graph and prepares the model's inputs.",
        (
            "self.add_requests",
            "self.gather_batch_req_state",
            "dispatch_cg_and_sync_dp",
            "self.model_state.prepare_attn",
            "self.model_state.prepare_inputs",
            "self.cudagraph_manager.run_fullgraph",
        ),
    ),
    Takes(
        f"{RUNNER_V2}.sample",
        "Overridden, original called: marks the end of verification.",
        positional=("hidden_states", "input_batch", "grammar_output"),
    ),
    Reads(
        f"{RUNNER_V2}.sample",
        "An observing step compares these with each exit's drafts, at the sampled rows.",
        ("sampler_output.num_sampled", "hidden_states[input_batch.logits_indices]"),
    ),
    Sets(
        f"{RUNNER_V2}.__init__",
        "No step observes if the model takes embeddings.",
        ("uses_inputs_embeds",),
    ),
    Calls(f"{RUNNER_V2}.sample_tokens", "Calls ours.", "self.sample", num_positional=3),
    Sets(
        f"{RUNNER_V2}.execute_model",
        "Holds K of the step; we read it before the original clears it.",
        ("execute_model_state",),
    ),
    Has(
        f"{GPU}.model_runner:ExecuteModelState",
        "K of the step; 0 if vLLM 0.33 skips drafting.",
        ("num_spec_tokens_to_schedule",),
    ),
    Takes(
        f"{RUNNER_V2}.reload_weights",
        "Overridden, original called; then drops exit states and copies rows of the LM head again.",
    ),
    Reads(
        f"{RUNNER_V2}.execute_model",
        "Runs the target eagerly, with the inputs that our model state has added.",
        ("self.model(**model_inputs)",),
    ),
    Takes(
        f"{RUNNER_V2}.sample_tokens",
        "Overridden, original called; adds our numbers to the output.",
        positional=("grammar_output",),
    ),
    Sets(
        f"{GPU}.async_utils:AsyncOutput.__init__",
        "Holds the output to which we add our numbers.",
        ("model_runner_output",),
    ),
    Reads(
        f"{GPU}.async_utils:AsyncOutput.get_output",
        "Returns the same object, with our numbers, to the scheduler.",
        ("self.model_runner_output",),
    ),
    InOrder(
        f"{RUNNER_V2}.sample_tokens",
        "The device counts accepted tokens before we propose; vLLM stores our drafts afterwards.",
        (
            "self.postprocess_sampled",
            "self.speculator.propose",
            "self.req_states.draft_tokens[input_batch.idx_mapping]",
            "self.draft_tokens_handler.set_draft_tokens",
        ),
    ),
    Calls(
        f"{RUNNER_V2}.sample_tokens",
        "Calls ours with K of the step; 0 if vLLM 0.33 knows that no draft will be used.",
        "self.speculator.propose",
        num_positional=11,
        keyword=("num_speculative_tokens", "dp_sync_state", "mm_inputs"),
    ),
    Reads(
        f"{RUNNER_V2}.sample_tokens",
        "We return as many columns as the configured K; this cuts those beyond the step's K.",
        ("draft_tokens[:, num_spec_tokens:]", "self.req_states.last_sampled_tokens"),
    ),
    Calls(
        f"{RUNNER_V2}._dummy_run",
        "Calls ours by these names.",
        "self.speculator.propose",
        keyword=(
            *("input_batch", "attn_metadata", "slot_mappings", "last_hidden_states"),
            *("aux_hidden_states", "num_sampled", "num_rejected", "last_sampled"),
            *("next_prefill_tokens", "temperature", "seeds", "dp_sync_state", "dummy_run"),
            *("skip_attn_for_dummy_run", "mm_inputs", "is_profile"),
        ),
    ),
    Has(
        INPUT_BATCH_V2,
        "Read by our speculator and model state.",
        (
            *("num_reqs", "num_tokens", "num_tokens_after_padding", "num_scheduled_tokens"),
            *("num_draft_tokens", "has_prefill", "logits_indices", "cu_num_logits"),
            *("idx_mapping", "idx_mapping_np", "query_start_loc", "seq_lens"),
            *("seq_lens_cpu_upper_bound", "num_computed_prefill_tokens_np", "prefill_len_np"),
        ),
    ),
)

STATE = (
    Takes(
        MODEL_STATE,
        "Subclassed by `LayerSkipModelState`.",
        positional=("vllm_config", "model", "encoder_cache", "device"),
    ),
    Sets(
        f"{GPU}.model_states.interface:ModelState.__init__",
        "Sizes the exit query cache.",
        ("model_config", "device", "max_num_reqs", "dtype"),
    ),
    Takes("vllm.config:ModelConfig.get_hidden_size", "Sizes the exit query cache."),
    Reads(
        f"{GPU}.model_states:resolve_model_state_cls",
        "Takes the class that the target names; our speculator's `load_model` sets it.",
        ("hasattr(model, 'get_model_state_cls')", "model.get_model_state_cls()"),
    ),
    Calls(
        f"{GPU}.model_states:init_model_state",
        "Makes our model state as it makes its own.",
        "cls",
        num_positional=4,
    ),
    Takes(
        f"{MODEL_STATE}.add_request",
        "Overridden, original called: a slot's next request has no exit states.",
        positional=("req_index", "new_req_data"),
    ),
    Calls(
        f"{RUNNER_V2}.add_requests",
        "Calls ours for new requests, and for those that come back from preemption.",
        "self.model_state.add_request",
        num_positional=2,
    ),
    Takes(
        f"{MODEL_STATE}.prepare_attn",
        "Overridden, original called: the last call to show whether a step replays a FULL graph.",
        positional=("input_batch", "cudagraph_mode"),
    ),
    Calls(
        f"{RUNNER_V2}.execute_model",
        "Calls ours with the chosen mode.",
        "self.model_state.prepare_attn",
        num_positional=6,
    ),
    Takes(
        f"{MODEL_STATE}.prepare_inputs",
        "Overridden, original called; adds the exit states from which the forward resumes.",
        positional=("input_batch", "req_states"),
    ),
    Calls(
        f"{RUNNER_V2}.execute_model",
        "Merges what ours returns into the target's arguments.",
        "self.model_state.prepare_inputs",
        num_positional=2,
    ),
    Takes(
        f"{MODEL_STATE}.prepare_dummy_inputs",
        "Overridden, original called; adds the exit states with which a graph is recorded.",
        positional=("num_reqs", "num_tokens"),
    ),
)

EXPECTATIONS = (*RUNNERS, *STEP, *STATE)
