"""Workers, and the runner of V1: `workers/` and `runner_v1/`."""

from tests.unit.contract.expectations import Calls, Has, Reads, Sets, Takes

RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
CPU_RUNNER = "vllm.v1.worker.cpu_model_runner:CPUModelRunner"
INPUT_BATCH = "vllm.v1.worker.gpu_input_batch:InputBatch"
LORA_RUNNER = "vllm.v1.worker.lora_model_runner_mixin:LoRAModelRunnerMixin"
GROUP = "vllm.distributed.parallel_state:GroupCoordinator"

FORWARD = ("input_ids", "positions", "intermediate_tensors", "inputs_embeds")

STEP = (
    *(
        Takes(
            runner,
            "`LayerSkipRunnerMixin` comes before it.",
            positional=("vllm_config", "device"),
        )
        for runner in (RUNNER, CPU_RUNNER)
    ),
    Sets(
        f"{RUNNER}.__init__",
        "Read by our runner.",
        (
            *("input_batch", "requests", "query_start_loc", "discard_request_mask"),
            *("max_model_len", "device"),
        ),
    ),
    Sets(f"{RUNNER}.__init__", "Replaced by our proposer.", ("drafter",)),
    Takes(
        f"{RUNNER}.execute_model",
        "Overridden, original called: exit states live for one step.",
        positional=("scheduler_output",),
    ),
    Takes(
        f"{RUNNER}._model_forward",
        "Overridden; original called if a token has no exit state.",
        positional=FORWARD,
    ),
    Calls(
        f"{RUNNER}.execute_model",
        "Calls our forward inside the forward context.",
        "self._model_forward",
        keyword=FORWARD,
    ),
    *(
        Reads(
            f"{RUNNER}.{method}",
            "Set to None in a step without drafts, which then equals plain vLLM's.",
            ("self.speculative_config",),
        )
        for method in ("_prepare_inputs", "_build_attention_metadata", "sample_tokens")
    ),
    Reads(
        f"{RUNNER}.take_draft_token_ids",
        "Returns no drafts after such a step.",
        ("self._draft_token_req_ids",),
    ),
    Takes(
        f"{RUNNER}._sample",
        "Replaced: samples each row plainly, or calls vLLM's rejection sampling for drawn drafts.",
        positional=("logits", "spec_decode_metadata"),
    ),
    Calls(f"{RUNNER}.sample_tokens", "Calls ours.", "self._sample", num_positional=2),
    Takes(
        f"{RUNNER}.reload_weights",
        "Overridden, original called; then drops exit states and copies rows of the LM head again.",
    ),
    Calls(
        "vllm.v1.worker.gpu_worker:Worker.reload_weights",
        "Calls ours.",
        "self.model_runner.reload_weights",
        num_positional=1,
    ),
)

DRAFTS = (
    Takes(
        f"{RUNNER}._input_fits_in_drafter",
        "Replaced: a request near `max_model_len` must not stop the drafts of the others.",
        positional=("common_attn_metadata",),
    ),
    Calls(
        f"{RUNNER}.sample_tokens", "Calls ours.", "self._input_fits_in_drafter", num_positional=1
    ),
    Takes(
        f"{RUNNER}.propose_draft_token_ids",
        "Replaced: the original is a switch over vLLM's own proposers.",
        positional=(
            *("scheduler_output", "sampled_token_ids", "sampling_metadata", "hidden_states"),
            *("sample_hidden_states", "aux_hidden_states", "spec_decode_metadata"),
            *("common_attn_metadata", "slot_mappings"),
        ),
    ),
    Calls(
        f"{RUNNER}.sample_tokens", "Calls ours.", "self.propose_draft_token_ids", num_positional=9
    ),
    Reads(
        f"{RUNNER}._get_draft_token_ids_cpu",
        "Accepts drafts as lists of unequal length; vLLM's own proposers return a tensor.",
        ("isinstance(self._draft_token_ids, list)",),
    ),
    *(
        Calls(
            f"{runner}.load_model",
            "Gives our proposer the target.",
            "self.drafter.load_model",
            num_positional=1,
        )
        for runner in (RUNNER, CPU_RUNNER)
    ),
    Calls(
        f"{RUNNER}.initialize_metadata_builders",
        "Calls our proposer.",
        "self.drafter.initialize_attn_backend",
        num_positional=2,
    ),
    Calls(
        f"{RUNNER}._dummy_run", "Calls our proposer.", "self.drafter.dummy_run", num_positional=1
    ),
)

BATCH = (
    Sets("vllm.v1.utils:CpuGpuBuffer.__init__", "The buffers' NumPy view.", ("np",)),
    Sets(
        f"{INPUT_BATCH}.__init__",
        "Progress of each request; ids beyond the vocabulary are rejected drafts.",
        ("num_computed_tokens_cpu", "vocab_size"),
    ),
    Has(INPUT_BATCH, "The requests of the step, by row.", properties=("num_reqs", "req_ids")),
    Takes(
        "vllm.v1.worker.gpu_input_batch:CachedRequestState",
        "Limits each request's drafts.",
        keyword=("sampling_params", "output_token_ids"),
    ),
    Sets(
        "vllm.v1.worker.gpu_input_batch:CachedRequestState.__post_init__",
        "Limits each request's drafts.",
        ("num_prompt_tokens",),
    ),
)

WORKERS = (
    Sets(
        "vllm.v1.worker.cpu_worker:CPUWorker.init_device",
        "Overridden, original called; then our runner replaces vLLM's.",
        ("device", "model_runner"),
    ),
    Sets(
        "vllm.v1.worker.gpu_worker:Worker.init_device",
        "Sets the device before it creates the runner.",
        ("device",),
    ),
    Takes(
        "vllm.v1.worker.gpu_worker:Worker._make_model_runner",
        "Overridden on CUDA: returns our runner.",
    ),
    Sets(
        "vllm.v1.worker.worker_base:WorkerBase.__init__",
        "Passed to our runner.",
        ("vllm_config",),
    ),
    Takes("vllm.distributed.parallel_state:get_tp_group", "The ranks of the target."),
    Sets(
        f"{GROUP}.__init__",
        "Idle rows pad small batches only if there is one rank: else they would cross the network.",
        ("world_size",),
    ),
)

LORA = (
    Sets(f"{RUNNER}.__init__", "Shows whether LoRA is enabled.", ("lora_config",)),
    Sets(f"{INPUT_BATCH}.__init__", "Each request's adapter.", ("request_lora_mapping",)),
    Calls(
        f"{RUNNER}._prepare_inputs",
        "Sets the step's adapters before its forward.",
        "self.set_active_loras",
        num_positional=3,
    ),
    Calls(
        f"{LORA_RUNNER}.set_active_loras",
        "Shows us the step's mapping of rows to adapters.",
        "self._set_active_loras",
        num_positional=4,
    ),
    Takes(
        f"{LORA_RUNNER}._set_active_loras",
        "Overridden, original called. We call it again with the rows of a draft step, then with "
        "the step's.",
        positional=("prompt_lora_mapping", "token_lora_mapping", "lora_requests"),
    ),
    Calls(
        f"{LORA_RUNNER}.load_lora_model",
        "This manager loads the requested adapters and keeps the others; we request none.",
        "LRUCacheWorkerLoRAManager",
        num_positional=3,
    ),
    Calls(
        "vllm.lora.model_manager:LoRAModelManager._create_lora_modules",
        "Replaces modules after the segments are built. The segments still use the new ones: they "
        "refer to whole layers, and look up the decoder's `embed_tokens` on each use.",
        "replace_submodule",
        num_positional=3,
    ),
    Takes(
        f"{LORA_RUNNER}.add_lora",
        "Overridden, original called; then discards exit states.",
        positional=("lora_request",),
    ),
    Has(
        "vllm.lora.request:LoRARequest",
        "A step that runs such a request discards exit states.",
        ("load_inplace",),
    ),
)

EXPECTATIONS = (*STEP, *DRAFTS, *BATCH, *WORKERS, *LORA)
