"""Configuration: `vllm_config/` and `plugin.py`."""

from layerskip_vllm.vllm_config.self_speculation import SPECULATIVE_KEYS
from tests.unit.contract.expectations import Admits, Calls, Has, InOrder, Reads, Sets, Takes

SPECULATIVE = "vllm.config:SpeculativeConfig"
ENGINE_ARGS = "vllm.engine.arg_utils:EngineArgs"
MODEL_CONFIG = "vllm.config:ModelConfig"
VLLM_CONFIG = "vllm.config:VllmConfig"

PLUGIN = (
    Has("vllm.version:__version__", "Decides whether the hooks are installed."),
    Has(
        "vllm.model_executor.models:ModelRegistry",
        "Public interface: skips architectures that are already registered.",
        ("get_supported_archs",),
    ),
    Takes(
        "vllm.model_executor.models:ModelRegistry.register_model",
        "Public interface: registers our architectures.",
        positional=("model_arch", "model_cls"),
    ),
)

ARGUMENTS = (
    Takes(
        "vllm.entrypoints.cli.serve:ServeSubcommand.subparser_init",
        "`layerskip-vllm doctor` takes the flags of `vllm serve`.",
        positional=("subparsers",),
    ),
    Takes(
        "vllm.engine.arg_utils:AsyncEngineArgs.from_cli_args",
        "`layerskip-vllm doctor` makes a configuration from those flags.",
        positional=("args",),
    ),
    Has(
        VLLM_CONFIG, "`layerskip-vllm doctor` shows plain vLLM's choice.", ("use_v2_model_runner",)
    ),
    *(
        Takes(
            f"{MODEL_CONFIG}.{method}",
            "`layerskip-vllm doctor` states the KV cache's bytes.",
            positional=("parallel_config",),
        )
        for method in ("get_num_layers", "get_num_kv_heads")
    ),
    Takes(
        "vllm.utils.torch_utils:kv_cache_dtype_str_to_dtype",
        "The same.",
        positional=("kv_cache_dtype", "model_config"),
    ),
    Has(
        "vllm.config:CacheConfig",
        "The same; and whether a CPU's cache takes most of the host.",
        ("cache_dtype", "kv_cache_memory_bytes", "gpu_memory_utilization"),
    ),
    Has(
        ENGINE_ARGS,
        "Read for `self:E` and its options.",
        ("spec_model", "spec_tokens", "spec_method", "speculative_config", "additional_config"),
    ),
    Has(
        ENGINE_ARGS,
        "Read to refuse untested settings.",
        (
            *("pipeline_parallel_size", "decode_context_parallel_size"),
            *("prefill_context_parallel_size", "enable_dbo", "enable_lora"),
            *("enable_prompt_embeds", "kv_transfer_config", "kv_offloading_size"),
            *("ec_transfer_config", "kv_cache_dtype", "kv_cache_dtype_skip_layers"),
            *("weight_transfer_config", "logits_processors", "load_format", "quantization"),
            *("quantization_config", "enable_sleep_mode", "worker_cls"),
            "structured_outputs_config",
        ),
    ),
    Has(
        "vllm.config:StructuredOutputsConfig",
        "Names the backend: under speculation, vLLM refuses requests to one of the backends.",
        ("backend",),
    ),
    Has(
        ENGINE_ARGS,
        "Changed: layers of several types share one KV cache group, and runner V1 has neither "
        "async scheduling nor CUDA graphs.",
        ("async_scheduling", "disable_hybrid_kv_cache_manager", "compilation_config"),
    ),
    InOrder(
        f"{ENGINE_ARGS}.create_engine_config",
        "Reads what we change only after calling us; otherwise the changes are lost.",
        (
            "self.create_speculative_config",
            "self.disable_hybrid_kv_cache_manager",
            "self.async_scheduling",
            "self.compilation_config",
        ),
    ),
    Has("vllm.envs:VLLM_USE_V2_MODEL_RUNNER", "The user's choice of runner."),
    Has("vllm.triton_utils:HAS_TRITON", "Runner V2 needs it."),
    Calls(
        f"{VLLM_CONFIG}.use_v2_model_runner",
        "If the user chooses no runner, vLLM asks what V2 lacks; a hook answers.",
        "self._get_v2_model_runner_unsupported_features",
    ),
    Has("vllm.envs:VLLM_USE_RUST_FRONTEND", "Refused: that front end loads no plugins."),
    Takes(
        "vllm.config.quantization:resolve_quantization_config",
        "Distinguishes a user's `--quantization-config` from one derived from `--quantization`.",
        positional=("quantization", "quantization_config"),
    ),
    Has(
        "vllm.v1.sample.logits_processor",
        "Entry points of custom logits processors, which vLLM ignores while it speculates.",
        ("LOGITSPROCS_GROUP",),
    ),
    Takes(
        "vllm.v1.spec_decode.dynamic.utils:validate_and_normalize_dynamic_sd_schedule",
        "Checks the user's schedule of K by batch size before the engine starts.",
        positional=("num_speculative_tokens_per_batch_size",),
    ),
)

MODEL = (
    Has(
        MODEL_CONFIG,
        "Read to refuse untested settings, and for the depth L.",
        (
            *("quantization", "hf_overrides", "hf_text_config", "enable_prompt_embeds"),
            "get_total_num_hidden_layers",
        ),
        properties=("architecture", "head_dtype"),
    ),
    *(
        Takes(f"{MODEL_CONFIG}.{method}", "`self:auto` starts from this shape.")
        for method in ("get_hidden_size", "get_vocab_size", "get_head_size")
    ),
    Sets(f"{MODEL_CONFIG}.__post_init__", "Only `generate` is supported.", ("runner_type",)),
    Has(
        MODEL_CONFIG,
        "Early exit and `self:E` change depth and architectures in the checkpoint's configuration, "
        "then the fields that vLLM derives from them.",
        ("hf_config", "get_model_arch_config"),
        properties=("architectures", "registry"),
    ),
    Sets(
        f"{MODEL_CONFIG}.__post_init__",
        "vLLM derives these from the configuration; early exit derives them again.",
        ("model_arch_config", "_model_info", "_architecture"),
    ),
    Takes(
        "vllm.model_executor.models.registry:_ModelRegistry.inspect_model_cls",
        "Early exit calls it as `update_arch_` does.",
        positional=("architectures", "model_config"),
    ),
    Reads(
        "vllm.transformers_utils.model_arch_config_convertor:"
        "ModelArchConfigConvertorBase.get_num_hidden_layers",
        "vLLM plans with the depth that early exit sets.",
        ("getattr(self.hf_text_config, 'num_hidden_layers', 0)",),
    ),
    Has(
        "vllm.config.model_arch:ModelArchitectureConfig",
        "Shows whether a checkpoint scales activations by the whole batch or quantizes the KV "
        "cache; we refuse both.",
        ("quantization_config",),
    ),
    Reads(
        f"{VLLM_CONFIG}.compute_hash",
        "Keeps the compiled graphs of different depths apart.",
        ("self.additional_config",),
    ),
)

PLATFORM = (
    Has("vllm.config:ParallelConfig", "Set to our worker.", ("worker_cls",)),
    Has("vllm.config:ParallelConfig", "The draft's too.", ("tensor_parallel_size",)),
    Reads(
        "vllm.platforms.cpu:CpuPlatform.check_and_update_config",
        "Keeps a worker class that is not `auto`; other platforms do too.",
        ("parallel_config.worker_cls",),
    ),
    Has(
        "vllm.config:CompilationConfig",
        "Set to no CUDA graphs on runner V1.",
        ("cudagraph_mode",),
    ),
    Has(
        "vllm.config.compilation:CUDAGraphMode",
        "V1's graphs support one batch shape, and drafts have another.",
        ("NONE",),
    ),
    Has("vllm.platforms:current_platform", "Chooses worker and CUDA graph mode."),
    Has(
        "vllm.platforms.interface:Platform",
        "We check the class, because a platform object returns None for any unknown name.",
        ("is_cuda", "is_cpu", "device_type"),
    ),
)

SPECULATION = (
    Takes(
        SPECULATIVE,
        "Subclassed by `LayerSkipSpeculativeConfig`, built with the user's settings.",
        keyword=(*SPECULATIVE_KEYS, "target_model_config", "target_parallel_config"),
    ),
    Has(
        SPECULATIVE,
        "`__post_init__` is replaced, because it would load a second model's configuration. Ours "
        "sets the other fields. vLLM's validators still run after it.",
        (
            *("__post_init__", "prompt_lookup_max", "prompt_lookup_min", "draft_model_config"),
            *("draft_parallel_config", "draft_tensor_parallel_size"),
            "num_speculative_tokens_per_batch_size",
        ),
    ),
    Has(
        SPECULATIVE,
        "Overridden with 0: a draft step feeds one token per request.",
        properties=("max_num_new_slots_for_drafting",),
    ),
    Takes(
        f"{SPECULATIVE}.compute_hash",
        "Overridden, original called: adds the exit layer, to keep compiled graphs apart.",
    ),
    Sets(
        f"{SPECULATIVE}.update_arch_",
        "Called after we replace the target's architecture, to derive these again.",
        (
            "draft_model_config.hf_text_config",
            "draft_model_config.model_arch_config",
            "draft_model_config._model_info",
            "draft_model_config._architecture",
        ),
    ),
    Admits("vllm.config.speculative:SpeculativeMethod", "The method we declare.", ("draft_model",)),
    Takes("vllm.config.utils:config", "Decorates our subclass.", positional=("cls",)),
    Takes(
        "vllm.utils.hashing:safe_hash",
        "Hashes as vLLM does.",
        positional=("data",),
        keyword=("usedforsecurity",),
    ),
)

REQUESTS = (
    Has("vllm.sampling_params:SamplingParams", "A request's own options.", ("extra_args",)),
    Takes(
        "vllm.exceptions:VLLMValidationError",
        "Refuses invalid options with HTTP 400.",
        positional=("message",),
        keyword=("parameter",),
    ),
    Calls(
        f"{VLLM_CONFIG}.num_lookahead_tokens",
        "Reserves K slots, into which the draft writes its KV.",
        "speculative_config.uses_draft_model",
    ),
)

EXPECTATIONS = (*PLUGIN, *ARGUMENTS, *MODEL, *PLATFORM, *SPECULATION, *REQUESTS)
