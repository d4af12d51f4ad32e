"""vLLM still has the internals that the plugin stands on: `patches/README.md`, second table.

Each line says what we use of one class or function, by the names we use.
"""

import re
from pathlib import Path

import pytest

from layerskip_vllm.vllm_config.self_speculation import SPECULATIVE_KEYS
from tests.unit.host_contract import Admits, Calls, Has, InOrder, Reads, Sets, Takes

LEDGER = Path(__file__).parents[2] / "patches" / "README.md"

SPECULATIVE = "vllm.config:SpeculativeConfig"
ENGINE_ARGS = "vllm.engine.arg_utils:EngineArgs"
VLLM_CONFIG = "vllm.config:VllmConfig"
BASE_PROPOSER = "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer"
PROPOSER = "vllm.v1.spec_decode.draft_model:DraftModelProposer"
RUNNER = "vllm.v1.worker.gpu_model_runner:GPUModelRunner"
CPU_RUNNER = "vllm.v1.worker.cpu_model_runner:CPUModelRunner"
INPUT_BATCH = "vllm.v1.worker.gpu_input_batch:InputBatch"
RAY_EXECUTOR = "vllm.v1.executor.ray_executor_v2"
EC_METRICS = "vllm.distributed.ec_transfer.ec_connector.metrics"
SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"
STAT_LOGGERS = "vllm.v1.metrics.loggers"
LLAMA = "vllm.model_executor.models.llama"
MISTRAL = "vllm.model_executor.models.mistral"
QWEN2, QWEN3 = "vllm.model_executor.models.qwen2", "vllm.model_executor.models.qwen3"
LORA_OPS = "vllm.lora.ops.torch_ops.lora_ops"
LORA_RUNNER = "vllm.v1.worker.lora_model_runner_mixin:LoRAModelRunnerMixin"

ENTRY_POINT = (
    Has("vllm.version:__version__", ()),
    Takes(f"{ENGINE_ARGS}.add_cli_args", positional=("parser",)),
    Takes(
        f"{ENGINE_ARGS}.create_speculative_config",
        positional=("target_model_config", "target_parallel_config"),
    ),
    Takes(f"{VLLM_CONFIG}._get_v2_model_runner_unsupported_features"),
    Has("vllm.model_executor.models:ModelRegistry", ("get_supported_archs",)),
    Takes(
        "vllm.model_executor.models:ModelRegistry.register_model",
        positional=("model_arch", "model_cls"),
    ),
)

CONFIGURATION = (
    Has(
        ENGINE_ARGS,
        (
            "spec_model",
            "spec_tokens",
            "spec_method",
            "speculative_config",
            "additional_config",
            "compilation_config",
            "async_scheduling",
            "pipeline_parallel_size",
            "decode_context_parallel_size",
            "prefill_context_parallel_size",
            "enable_dbo",
            "enable_lora",
            "enable_prompt_embeds",
            "kv_transfer_config",
            "kv_offloading_size",
            "ec_transfer_config",
            "kv_cache_dtype",
            "disable_hybrid_kv_cache_manager",
            "kv_cache_dtype_skip_layers",
            "weight_transfer_config",
            "logits_processors",
            "load_format",
            "quantization",
            "quantization_config",
            "enable_sleep_mode",
            "worker_cls",
        ),
    ),
    # What we set on the engine arguments counts only if vLLM reads it afterwards.
    InOrder(
        f"{ENGINE_ARGS}.create_engine_config",
        (
            "self.create_speculative_config",
            "self.disable_hybrid_kv_cache_manager",
            "self.async_scheduling",
            "self.compilation_config",
        ),
    ),
    Has(
        "vllm.config:ModelConfig",
        (
            "hf_config",
            "hf_text_config",
            "quantization",
            "hf_overrides",
            "enable_prompt_embeds",
            "get_total_num_hidden_layers",
            "get_model_arch_config",
        ),
        properties=("architecture", "architectures", "registry", "head_dtype"),
    ),
    Sets(
        "vllm.config:ModelConfig.__post_init__",
        ("runner_type", "model_arch_config", "_model_info", "_architecture"),
    ),
    Takes(
        "vllm.model_executor.models.registry:_ModelRegistry.inspect_model_cls",
        positional=("architectures", "model_config"),
    ),
    Reads(
        "vllm.transformers_utils.model_arch_config_convertor:"
        "ModelArchConfigConvertorBase.get_num_hidden_layers",
        ("getattr(self.hf_text_config, 'num_hidden_layers', 0)",),
    ),
    Has("vllm.config.model_arch:ModelArchitectureConfig", ("quantization_config",)),
    Reads(f"{VLLM_CONFIG}.compute_hash", ("self.additional_config",)),
    Has("vllm.config:ParallelConfig", ("worker_cls", "tensor_parallel_size")),
    Reads(
        "vllm.platforms.cpu:CpuPlatform.check_and_update_config", ("parallel_config.worker_cls",)
    ),
    Has("vllm.config:CompilationConfig", ("cudagraph_mode",)),
    Has("vllm.config.compilation:CUDAGraphMode", ("NONE",)),
    Has("vllm.platforms:current_platform", ()),
    # The class, since a platform object answers None to any name it does not know.
    Has("vllm.platforms.interface:Platform", ("is_cuda", "device_type")),
    Has("vllm.envs:VLLM_USE_V2_MODEL_RUNNER", ()),
    Has("vllm.envs:VLLM_USE_RUST_FRONTEND", ()),
    Takes(
        "vllm.config.quantization:resolve_quantization_config",
        positional=("quantization", "quantization_config"),
    ),
    Has("vllm.lora.request:LoRARequest", ("load_inplace",)),
    Takes(f"{LORA_RUNNER}.add_lora", positional=("lora_request",)),
    Has("vllm.v1.sample.logits_processor", ("LOGITSPROCS_GROUP",)),
    Has("vllm.sampling_params:SamplingParams", ("extra_args",)),
    Takes("vllm.exceptions:VLLMValidationError", positional=("message",), keyword=("parameter",)),
    Takes(
        "vllm.v1.spec_decode.dynamic.utils:validate_and_normalize_dynamic_sd_schedule",
        positional=("num_speculative_tokens_per_batch_size",),
    ),
    Takes(
        SPECULATIVE, keyword=(*SPECULATIVE_KEYS, "target_model_config", "target_parallel_config")
    ),
    Has(
        SPECULATIVE,
        (
            "__post_init__",
            "prompt_lookup_max",
            "prompt_lookup_min",
            "draft_model_config",
            "draft_parallel_config",
            "draft_tensor_parallel_size",
            "num_speculative_tokens_per_batch_size",
        ),
        properties=("max_num_new_slots_for_drafting",),
    ),
    Takes(f"{SPECULATIVE}.compute_hash"),
    Sets(
        f"{SPECULATIVE}.update_arch_",
        (
            "draft_model_config.hf_text_config",
            "draft_model_config.model_arch_config",
            "draft_model_config._model_info",
            "draft_model_config._architecture",
        ),
    ),
    Admits("vllm.config.speculative:SpeculativeMethod", ("draft_model",)),
    Takes("vllm.config.utils:config", positional=("cls",)),
    Takes("vllm.utils.hashing:safe_hash", positional=("data",), keyword=("usedforsecurity",)),
    Calls(f"{VLLM_CONFIG}.num_lookahead_tokens", "speculative_config.uses_draft_model"),
    Reads(
        f"{VLLM_CONFIG}._set_max_num_scheduled_tokens",
        ("self.speculative_config.max_num_new_slots_for_drafting",),
    ),
    Reads(
        "vllm.v1.core.sched.scheduler:Scheduler.schedule",
        ("spec.max_num_new_slots_for_drafting", "self.dynamic_sd_lookup"),
    ),
)

PROPOSE_AND_VERIFY = (
    Takes(PROPOSER, positional=("vllm_config", "device")),
    Sets(
        f"{BASE_PROPOSER}.__init__",
        (
            "vllm_config",
            "speculative_config",
            "device",
            "dtype",
            "max_model_len",
            "num_speculative_tokens",
            "hidden_size",
            "max_batch_size",
            "block_size",
            "draft_attn_groups",
            "hidden_states",
            "inputs_embeds",
        ),
    ),
    Takes(f"{PROPOSER}.load_model", positional=("target_model",)),
    Sets(f"{BASE_PROPOSER}.load_model", ("model", "_draft_attn_layer_names")),
    Sets(f"{BASE_PROPOSER}.initialize_attn_backend", ("draft_attn_groups", "block_size")),
    Reads(f"{BASE_PROPOSER}.initialize_attn_backend", ("self._draft_attn_layer_names",)),
    Takes(f"{PROPOSER}.initialize_cudagraph_keys", positional=("cudagraph_mode",)),
    Takes(f"{PROPOSER}.dummy_run", positional=("num_tokens",)),
    Takes(f"{BASE_PROPOSER}._sample_from_logits", positional=("logits", "sampling_metadata")),
    Sets(
        f"{BASE_PROPOSER}.__init__",
        ("_enable_probabilistic_draft_probs", "arange", "use_local_argmax_reduction"),
    ),
    Reads(
        "vllm.model_executor.layers.logits_processor:LogitsProcessor._apply_head",
        ("lm_head.quant_method.apply(lm_head, hidden_states, bias=embedding_bias)",),
    ),
    Reads(
        "vllm.model_executor.layers.logits_processor:LogitsProcessor._get_logits",
        ("lm_head.tp_size",),
    ),
    Takes(
        "vllm.model_executor.layers.linear:UnquantizedLinearMethod.process_weights_after_loading",
        positional=("layer",),
    ),
    Takes(
        "vllm.model_executor.layers.linear:UnquantizedLinearMethod.apply",
        positional=("layer", "x", "bias"),
    ),
    Has("vllm.model_executor.layers.vocab_parallel_embedding:UnquantizedEmbeddingMethod", ()),
    Takes("vllm.tokenizers:cached_tokenizer_from_config", positional=("model_config",)),
    Sets(
        "vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbedding.__init__",
        ("org_vocab_size", "tp_size", "tp_rank", "shard_indices"),
    ),
    Takes(
        "vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbeddingShardIndices",
        keyword=("org_vocab_start_index", "org_vocab_end_index"),
    ),
    Has("vllm.v1.spec_decode.utils", ("PADDING_SLOT_ID",)),
    Takes(
        "vllm.v1.sample.rejection_sampler:expand_batch_to_tokens",
        positional=("x", "cu_num_tokens", "num_tokens", "replace_from", "replace_to"),
    ),
    Takes(
        "vllm.forward_context:set_forward_context",
        positional=("attn_metadata", "vllm_config"),
        keyword=("num_tokens",),
    ),
    Takes("vllm.forward_context:get_forward_context"),
    Has("vllm.forward_context:ForwardContext", ("attn_metadata", "slot_mapping")),
    Takes(
        "vllm.v1.attention.backend:CommonAttentionMetadata",
        keyword=(
            "query_start_loc",
            "query_start_loc_cpu",
            "seq_lens",
            "seq_lens_cpu_upper_bound",
            "num_reqs",
            "num_actual_tokens",
            "max_query_len",
            "max_seq_len",
            "block_table_tensor",
            "slot_mapping",
            "positions",
            "is_prefilling",
        ),
    ),
    Takes(
        "vllm.v1.worker.utils:AttentionGroup.build_metadata", positional=("common_attn_metadata",)
    ),
    Has("vllm.v1.worker.utils:AttentionGroup", ("layer_names",)),
    Has("vllm.v1.sample.metadata:SamplingMetadata", ("temperature",)),
    Has("vllm.v1.spec_decode.metadata:SpecDecodeMetadata", ("num_draft_tokens",)),
)

RUNNERS_AND_WORKERS = (
    Takes(RUNNER, positional=("vllm_config", "device")),
    Takes(CPU_RUNNER, positional=("vllm_config", "device")),
    Takes(f"{RUNNER}.execute_model", positional=("scheduler_output",)),
    Takes(
        f"{RUNNER}._model_forward",
        positional=("input_ids", "positions", "intermediate_tensors", "inputs_embeds"),
    ),
    Takes(f"{RUNNER}.reload_weights"),
    Calls(
        "vllm.v1.worker.gpu_worker:Worker.reload_weights",
        "self.model_runner.reload_weights",
        num_positional=1,
    ),
    Takes(f"{RUNNER}._build_attention_metadata"),
    Takes(f"{RUNNER}._sample", positional=("logits", "spec_decode_metadata")),
    Calls(f"{RUNNER}.sample_tokens", "self._sample", num_positional=2),
    Sets(f"{RUNNER}.__init__", ("rejection_sampler",)),
    Takes(
        "vllm.v1.sample.rejection_sampler:RejectionSampler.apply_logits_processors",
        positional=("logits", "sampling_metadata", "metadata"),
    ),
    Sets(
        "vllm.v1.sample.logits_processor.builtin:LogitBiasLogitsProcessor.__init__",
        ("biases", "bias_tensor", "logits_slice"),
    ),
    Sets(f"{INPUT_BATCH}.__init__", ("logitsprocs",)),
    Takes(
        "vllm.sampling_params:SamplingParams._validate_spec_decode",
        positional=("speculative_config",),
    ),
    Takes(f"{RUNNER}._input_fits_in_drafter", positional=("common_attn_metadata",)),
    Takes(
        f"{RUNNER}.propose_draft_token_ids",
        positional=(
            "scheduler_output",
            "sampled_token_ids",
            "sampling_metadata",
            "hidden_states",
            "sample_hidden_states",
            "aux_hidden_states",
            "spec_decode_metadata",
            "common_attn_metadata",
            "slot_mappings",
        ),
    ),
    Calls(f"{RUNNER}.execute_model", "self._build_attention_metadata", keyword=("num_tokens",)),
    Calls(
        f"{RUNNER}.execute_model",
        "self._model_forward",
        keyword=("input_ids", "positions", "intermediate_tensors", "inputs_embeds"),
    ),
    # The fields that we cut rows from must be there: all but these have no default.
    Calls(
        f"{RUNNER}._build_attention_metadata",
        "CommonAttentionMetadata",
        keyword=("positions", "is_prefilling", "seq_lens_cpu_upper_bound"),
    ),
    Calls(f"{RUNNER}.sample_tokens", "self._input_fits_in_drafter", num_positional=1),
    Calls(f"{RUNNER}.sample_tokens", "self.propose_draft_token_ids", num_positional=9),
    Calls(f"{RUNNER}.load_model", "self.drafter.load_model", num_positional=1),
    Calls(f"{CPU_RUNNER}.load_model", "self.drafter.load_model", num_positional=1),
    Calls(
        f"{RUNNER}.initialize_metadata_builders",
        "self.drafter.initialize_attn_backend",
        num_positional=2,
    ),
    Calls(f"{RUNNER}._dummy_run", "self.drafter.dummy_run", num_positional=1),
    # Drafts are returned as lists of unequal length, where vLLM's own proposers return a tensor.
    Reads(f"{RUNNER}._get_draft_token_ids_cpu", ("isinstance(self._draft_token_ids, list)",)),
    Reads(
        f"{RUNNER}._get_spec_decode_draft_probs",
        ("self._draft_probs[row_idx, :num_draft]", "self._draft_prob_req_ids"),
    ),
    Sets(
        f"{RUNNER}.__init__",
        (
            "drafter",
            "input_batch",
            "requests",
            "query_start_loc",
            "discard_request_mask",
            "max_model_len",
            "device",
            "_draft_probs",
            "_draft_prob_req_ids",
        ),
    ),
    Sets("vllm.v1.utils:CpuGpuBuffer.__init__", ("np",)),
    Sets(f"{INPUT_BATCH}.__init__", ("num_computed_tokens_cpu", "token_ids_cpu", "vocab_size")),
    Has(INPUT_BATCH, (), properties=("num_reqs", "req_ids")),
    Takes(
        "vllm.v1.worker.gpu_input_batch:CachedRequestState",
        keyword=("sampling_params", "output_token_ids"),
    ),
    Sets(f"{INPUT_BATCH}.__init__", ("thinking_budget_state_holder",)),
    Has("vllm.sampling_params:SamplingParams", ("min_tokens", "thinking_token_budget")),
    Has(
        "vllm.v1.core.sched.output:SchedulerOutput",
        ("scheduled_cached_reqs", "num_spec_tokens_to_schedule"),
    ),
    Has("vllm.v1.core.sched.output:CachedRequestData", ("req_ids", "resumed_req_ids")),
    Sets("vllm.v1.worker.cpu_worker:CPUWorker.init_device", ("device", "model_runner")),
    Sets("vllm.v1.worker.gpu_worker:Worker.init_device", ("device",)),
    Takes("vllm.v1.worker.gpu_worker:Worker._make_model_runner"),
    Sets("vllm.v1.worker.worker_base:WorkerBase.__init__", ("vllm_config",)),
)

LORA = (
    Sets(f"{RUNNER}.__init__", ("lora_config",)),
    Sets(f"{INPUT_BATCH}.__init__", ("request_lora_mapping",)),
    Calls(f"{RUNNER}._prepare_inputs", "self.set_active_loras", num_positional=3),
    Calls(f"{LORA_RUNNER}.set_active_loras", "self._set_active_loras", num_positional=4),
    # This one loads what is asked for and keeps the others; we ask for none.
    Calls(f"{LORA_RUNNER}.load_lora_model", "LRUCacheWorkerLoRAManager", num_positional=3),
    Takes(
        f"{LORA_RUNNER}._set_active_loras",
        positional=("prompt_lora_mapping", "token_lora_mapping", "lora_requests"),
    ),
    Calls(
        "vllm.lora.model_manager:LoRAModelManager._create_lora_modules",
        "replace_submodule",
        num_positional=3,
    ),
    Takes(
        f"{LORA_OPS}:bgmv_expand",
        positional=("inputs", "lora_b_weights", "output_tensor", "lora_indices_tensor"),
    ),
    Takes(
        f"{LORA_OPS}:bgmv_expand_slice",
        positional=("inputs", "lora_b_weights", "output_tensor", "lora_indices_tensor"),
    ),
    Has("vllm.lora.punica_wrapper.punica_cpu", ("bgmv_expand", "bgmv_expand_slice")),
)

PARALLEL = (
    Takes("vllm.distributed.parallel_state:get_tp_group"),
    Sets("vllm.distributed.parallel_state:GroupCoordinator.__init__", ("world_size", "cpu_group")),
    Has(
        "vllm.distributed.parallel_state:GroupCoordinator",
        (),
        properties=("first_rank", "is_first_rank"),
    ),
    Takes("vllm.v1.executor.abstract:Executor.get_class", positional=("vllm_config",)),
    Has(
        "vllm.config:ParallelConfig",
        (
            "distributed_executor_backend",
            "data_parallel_backend",
            "assigned_physical_gpu_ids",
        ),
    ),
    # Drafting needs all logits on all ranks.
    Reads(
        "vllm.model_executor.layers.logits_processor:LogitsProcessor.__init__",
        ("current_platform.use_all_gather()",),
    ),
    Takes(
        "vllm.model_executor.layers.logits_processor:LogitsProcessor.forward",
        positional=("lm_head", "hidden_states", "embedding_bias"),
    ),
    Takes("vllm.distributed:tensor_model_parallel_all_reduce", positional=("input_",)),
    Reads(
        f"{RAY_EXECUTOR}:RayExecutorV2._build_runtime_env",
        ("runtime_env.setdefault('env_vars', {})",),
    ),
    Takes("vllm.v1.executor.ray_utils:initialize_ray_cluster", positional=("parallel_config",)),
    Reads(
        f"{RAY_EXECUTOR}:RayWorkerProc.get_node_and_physical_gpu_ids",
        ("current_platform.ray_device_key",),
    ),
    Reads(
        "vllm.distributed.device_communicators.cpu_communicator"
        ":CpuCommunicator._all_group_ranks_share_shm_group_name",
        ("_CPUSHMDistributed.make_group_name(self)",),
    ),
    Has("vllm.platforms.interface:Platform", ("ray_device_key", "is_cpu")),
    Has("vllm.envs:VLLM_USE_RAY_V2_EXECUTOR_BACKEND", ()),
    Has(f"{RAY_EXECUTOR}:RayExecutorV2", ("_get_actor_resource_kwargs",)),
    # The global that we replace is the one of which actors are made.
    Calls(f"{RAY_EXECUTOR}:RayExecutorV2._init_executor", "ray.remote", num_positional=1),
    Reads(
        f"{RAY_EXECUTOR}:RayExecutorV2._init_executor",
        ("RayWorkerProc", "self._get_actor_resource_kwargs()", "self._build_runtime_env()"),
    ),
    Takes(f"{RAY_EXECUTOR}:RayWorkerProc.get_node_and_physical_gpu_ids"),
    Takes(
        f"{RAY_EXECUTOR}:RayWorkerProc.initialize_worker", keyword=("assigned_physical_gpu_ids",)
    ),
    Takes(
        "vllm.distributed.device_communicators.cpu_communicator:_CPUSHMDistributed.make_group_name",
        positional=("communicator",),
    ),
)

METRICS = (
    # From the runner by the scheduler and the front end to Prometheus.
    Takes(f"{RUNNER}.sample_tokens", positional=("grammar_output",)),
    Has("vllm.v1.outputs:ModelRunnerOutput", ("req_ids", "ec_connector_output")),
    Takes("vllm.v1.outputs:ECConnectorOutput", keyword=("ec_connector_stats",)),
    Takes(f"{EC_METRICS}:ECConnectorStats", positional=("data",)),
    Reads(
        f"{SCHEDULER}.update_from_output",
        ("model_runner_output.ec_connector_output", "ec_connector_output.ec_connector_stats"),
    ),
    Calls(
        f"{SCHEDULER}.update_from_output",
        "self.make_stats",
        num_positional=4,
        keyword=("ec_connector_stats",),
    ),
    Reads(f"{SCHEDULER}.make_stats", ("ec_connector_stats.data",)),
    Has("vllm.v1.metrics.stats:SchedulerStats", ("ec_connector_stats",)),
    Calls(
        f"{STAT_LOGGERS}:PrometheusStatLogger.__init__", "self._ec_connector_cls", num_positional=3
    ),
    Calls(
        f"{STAT_LOGGERS}:PrometheusStatLogger.record",
        "self.ec_connector_prom.observe",
        num_positional=2,
    ),
    Calls(
        f"{STAT_LOGGERS}:LoggingStatLogger.record",
        "self.ec_connector_logging.observe",
        num_positional=1,
    ),
    Has(f"{EC_METRICS}:ECConnectorProm", ("_counter_cls", "_histogram_cls")),
    Sets(f"{EC_METRICS}:ECConnectorProm.__init__", ("prom_metrics",)),
    Calls(f"{EC_METRICS}:ECConnectorProm.observe", "self.prom_metrics.observe", num_positional=2),
    Has("vllm.v1.metrics.ray_wrappers:RayPrometheusStatLogger", ("_ec_connector_cls",)),
    *(
        Has(f"vllm.v1.metrics.ray_wrappers:Ray{kind}Wrapper", ("labels",))
        for kind in ("Gauge", "Counter", "Histogram")
    ),
    Takes(f"{EC_METRICS}:ECConnectorLogging.observe", positional=("transfer_stats_data",)),
    Takes(
        "vllm.v1.metrics.utils:create_metric_per_engine",
        positional=("metric", "per_engine_labelvalues"),
    ),
)

MODELS = (
    Takes(
        "vllm.compilation.decorators:support_torch_compile",
        positional=("cls",),
        keyword=("dynamic_arg_dims",),
    ),
    Takes("vllm.compilation.backends:set_model_tag", positional=("tag",)),
    Takes(f"{LLAMA}:LlamaForCausalLM", keyword=("vllm_config", "prefix")),
    Takes(
        f"{LLAMA}:LlamaForCausalLM.forward",
        positional=("input_ids", "positions", "intermediate_tensors", "inputs_embeds"),
    ),
    Takes(f"{LLAMA}:LlamaForCausalLM.compute_logits", positional=("hidden_states",)),
    Takes(f"{LLAMA}:LlamaForCausalLM.get_top_tokens", positional=("hidden_states",)),
    Takes(f"{LLAMA}:LlamaForCausalLM.embed_input_ids", positional=("input_ids",)),
    Takes(f"{LLAMA}:LlamaForCausalLM.load_weights", positional=("weights",)),
    Sets(f"{LLAMA}:LlamaForCausalLM.__init__", ("model", "config")),
    Sets(f"{LLAMA}:LlamaModel.__init__", ("embed_tokens", "layers", "norm")),
    Reads(f"{LLAMA}:LlamaModel.__init__", ("config.num_hidden_layers",)),
    Reads(
        "vllm.model_executor.model_loader.default_loader:DefaultModelLoader.get_all_weights",
        ("getattr(model, 'is_unused_checkpoint_weight', None)",),
    ),
    Takes("vllm.model_executor.models.utils:extract_layer_index", positional=("layer_name",)),
    Takes(
        f"{LLAMA}:LlamaDecoderLayer.forward",
        positional=("positions", "hidden_states", "residual"),
    ),
    Sets(f"{LLAMA}:LlamaDecoderLayer.__init__", ("self_attn",)),
    Sets(f"{LLAMA}:LlamaAttention.__init__", ("attn",)),
    Sets("vllm.model_executor.layers.attention:Attention.__init__", ("layer_name",)),
    Takes(
        "vllm.model_executor.layers.layernorm:RMSNorm.forward_native",
        positional=("x", "residual"),
    ),
    Takes(
        "vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbedding.forward",
        positional=("input_",),
    ),
)

LAYER = ("positions", "hidden_states", "residual")
FORWARD = ("input_ids", "positions", "intermediate_tensors", "inputs_embeds")

OTHER_FAMILIES = (
    Takes(f"{MISTRAL}:MistralForCausalLM", keyword=("vllm_config", "prefix")),
    Takes(f"{MISTRAL}:MistralForCausalLM.forward", positional=FORWARD),
    Takes(f"{MISTRAL}:MistralForCausalLM.embed_input_ids", positional=("input_ids",)),
    Takes(f"{MISTRAL}:MistralForCausalLM.load_weights", positional=("weights",)),
    Takes(f"{MISTRAL}:MistralDecoderLayer.forward", positional=LAYER),
    Takes(f"{QWEN2}:Qwen2ForCausalLM", keyword=("vllm_config", "prefix")),
    Takes(f"{QWEN2}:Qwen2ForCausalLM.forward", positional=FORWARD),
    Takes(f"{QWEN2}:Qwen2ForCausalLM.embed_input_ids", positional=("input_ids",)),
    Takes(f"{QWEN2}:Qwen2ForCausalLM.load_weights", positional=("weights",)),
    Sets(f"{QWEN2}:Qwen2ForCausalLM.__init__", ("model", "config")),
    Sets(f"{QWEN2}:Qwen2ForCausalLM.__init__", ("lm_head", "logits_processor")),
    Takes(
        "vllm.model_executor.models.interfaces:LocalArgmaxMixin.get_top_tokens",
        positional=("hidden_states",),
    ),
    Sets(f"{QWEN2}:Qwen2Model.__init__", ("embed_tokens", "layers", "norm")),
    Reads(f"{QWEN2}:Qwen2Model.__init__", ("config.num_hidden_layers",)),
    Takes(f"{QWEN2}:Qwen2DecoderLayer.forward", positional=LAYER),
    Sets(f"{QWEN2}:Qwen2DecoderLayer.__init__", ("self_attn",)),
    Sets(f"{QWEN2}:Qwen2Attention.__init__", ("attn",)),
    Takes(f"{QWEN3}:Qwen3ForCausalLM", keyword=("vllm_config", "prefix")),
    Takes(f"{QWEN3}:Qwen3ForCausalLM.forward", positional=FORWARD),
    Takes(f"{QWEN3}:Qwen3ForCausalLM.embed_input_ids", positional=("input_ids",)),
    Takes(f"{QWEN3}:Qwen3ForCausalLM.load_weights", positional=("weights",)),
    Sets(f"{QWEN3}:Qwen3ForCausalLM.__init__", ("model", "config")),
    Takes(f"{QWEN3}:Qwen3DecoderLayer.forward", positional=LAYER),
    Sets(f"{QWEN3}:Qwen3DecoderLayer.__init__", ("self_attn",)),
    Sets(f"{QWEN3}:Qwen3Attention.__init__", ("attn",)),
)

CONTRACT = (
    *ENTRY_POINT,
    *CONFIGURATION,
    *PROPOSE_AND_VERIFY,
    *RUNNERS_AND_WORKERS,
    *LORA,
    *PARALLEL,
    *METRICS,
    *MODELS,
    *OTHER_FAMILIES,
)


@pytest.mark.parametrize("expectation", CONTRACT, ids=str)
def test_vllm_still_offers_what_the_plugin_uses(expectation):
    assert expectation.faults() == []


@pytest.mark.parametrize(
    "renamed",
    [
        Takes(f"{RUNNER}._model_forward", positional=("input_ids", "renamed")),
        Takes("vllm.forward_context:set_forward_context", keyword=("renamed",)),
        Has(ENGINE_ARGS, ("renamed",)),
        Has(SPECULATIVE, (), properties=("compute_hash",)),
        Sets(f"{RUNNER}.__init__", ("renamed",)),
        Reads(f"{RUNNER}.sample_tokens", ("self.renamed",)),
        Calls(f"{RUNNER}.sample_tokens", "self.renamed"),
        Calls(f"{RUNNER}.sample_tokens", "self.propose_draft_token_ids", num_positional=8),
        InOrder(
            f"{ENGINE_ARGS}.create_engine_config",
            ("self.async_scheduling", "self.create_speculative_config"),
        ),
        Admits("vllm.config.speculative:SpeculativeMethod", ("renamed",)),
    ],
    ids=str,
)
def test_a_renamed_internal_is_noticed(renamed):
    assert renamed.faults() != []


def test_the_ledger_names_every_internal():
    code = " ".join(re.findall(r"`([^`\n]+)`", LEDGER.read_text()))
    names = {name for expectation in CONTRACT for name in expectation.names()}
    missing = {name for name in names if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", code)}
    assert missing == set()
