"""Propose and verify: `spec_decode/` and `runner_v1/proposer.py`."""

from tests.unit.contract.expectations import Has, Reads, Sets, Takes

BASE_PROPOSER = "vllm.v1.spec_decode.llm_base_proposer:SpecDecodeBaseProposer"
PROPOSER = "vllm.v1.spec_decode.draft_model:DraftModelProposer"
LAYERS = "vllm.model_executor.layers"
EMBEDDING = f"{LAYERS}.vocab_parallel_embedding"
LOGITS_PROCESSOR = f"{LAYERS}.logits_processor:LogitsProcessor"

PROPOSE = (
    Takes(
        PROPOSER,
        "Subclassed by `LayerSkipProposer`: the V1 runner asserts its drafter's type, and gives "
        "this type the common attention metadata. Its `propose` is never called.",
        positional=("vllm_config", "device"),
    ),
    Sets(
        f"{BASE_PROPOSER}.__init__",
        "Read by our proposer.",
        (
            *("vllm_config", "speculative_config", "device", "dtype", "max_model_len"),
            *("num_speculative_tokens", "hidden_size", "max_batch_size", "block_size", "arange"),
            "draft_attn_groups",
        ),
    ),
    Sets(
        f"{BASE_PROPOSER}.__init__",
        "Replaced by empty tensors: only a second model's prefill uses them.",
        ("hidden_states", "inputs_embeds"),
    ),
    Takes(
        f"{PROPOSER}.load_model",
        "Replaced: the draft is the target.",
        positional=("target_model",),
    ),
    Sets(
        f"{BASE_PROPOSER}.load_model",
        "Ours sets the same: the target and its early layers' names.",
        ("model", "_draft_attn_layer_names"),
    ),
    Sets(
        f"{BASE_PROPOSER}.initialize_attn_backend",
        "Overridden, original called; then manager and kernel must share one block size.",
        ("draft_attn_groups", "block_size"),
    ),
    Reads(
        f"{BASE_PROPOSER}.initialize_attn_backend",
        "Builds the groups of the early layers; requires them in one KV cache group.",
        ("self._draft_attn_layer_names",),
    ),
    Takes(
        f"{PROPOSER}.initialize_cudagraph_keys",
        "Inherited; has no effect, because CUDA graphs are off.",
        positional=("cudagraph_mode",),
    ),
    Takes(
        f"{PROPOSER}.dummy_run",
        "Replaced: compiles both segments, which the target's dummy run does not run.",
        positional=("num_tokens",),
    ),
    Takes(
        f"{BASE_PROPOSER}._sample_from_logits",
        "Samples the drafts of a batch that is not greedy.",
        positional=("logits", "sampling_metadata"),
    ),
    Sets(
        f"{BASE_PROPOSER}.__init__",
        "Decide whether drafts are drawn, and whether the model finds the greedy draft.",
        ("_enable_probabilistic_draft_probs", "use_local_argmax_reduction"),
    ),
    Has(
        "vllm.v1.sample.metadata:SamplingMetadata",
        "Cut to the drafting requests.",
        ("temperature", "all_greedy", "all_random"),
    ),
    Has(
        "vllm.v1.spec_decode.utils",
        "The slot of a token whose KV must not be written.",
        ("PADDING_SLOT_ID",),
    ),
)

ATTENTION = (
    Takes(
        "vllm.forward_context:set_forward_context",
        "One context per propose step, at first without metadata.",
        positional=("attn_metadata", "vllm_config"),
        keyword=("num_tokens",),
    ),
    Takes(
        "vllm.forward_context:get_forward_context",
        "Inside the runner's forward, the early layers' entries are replaced in place.",
    ),
    Has(
        "vllm.forward_context:ForwardContext",
        "Dictionaries by layer name.",
        ("attn_metadata", "slot_mapping"),
    ),
    Takes(
        "vllm.v1.attention.backend:CommonAttentionMetadata",
        "Built for the early layers' tokens; the other fields keep their defaults.",
        keyword=(
            *("query_start_loc", "query_start_loc_cpu", "seq_lens", "seq_lens_cpu_upper_bound"),
            *("num_reqs", "num_actual_tokens", "max_query_len", "max_seq_len"),
            *("block_table_tensor", "slot_mapping", "positions", "is_prefilling"),
        ),
    ),
    Takes(
        "vllm.v1.worker.utils:AttentionGroup.build_metadata",
        "Lets each backend build the early layers' metadata.",
        positional=("common_attn_metadata",),
    ),
    Has("vllm.v1.worker.utils:AttentionGroup", "Names its layers.", ("layer_names",)),
    Has(
        "vllm.v1.spec_decode.metadata:SpecDecodeMetadata",
        "Number of drafts that a step verifies, per request.",
        ("num_draft_tokens",),
    ),
)

DRAFT_HEAD = (
    Takes(
        f"{LOGITS_PROCESSOR}.forward",
        "Gets a `DraftHead` in place of a `ParallelLMHead`.",
        positional=("lm_head", "hidden_states", "embedding_bias"),
    ),
    Reads(
        f"{LOGITS_PROCESSOR}._apply_head",
        "Uses only the `quant_method` of a head.",
        ("lm_head.quant_method.apply(lm_head, hidden_states, bias=embedding_bias)",),
    ),
    Reads(f"{LOGITS_PROCESSOR}._get_logits", "Also uses its `tp_size`.", ("lm_head.tp_size",)),
    Reads(
        f"{LOGITS_PROCESSOR}.__init__",
        "All ranks get all logits, which drafting needs.",
        ("current_platform.use_all_gather()",),
    ),
    Takes(
        f"{LAYERS}.linear:UnquantizedLinearMethod.process_weights_after_loading",
        "Packs the draft head's rows for CPU.",
        positional=("layer",),
    ),
    Takes(
        f"{LAYERS}.linear:UnquantizedLinearMethod.apply",
        "Multiplies by the draft head.",
        positional=("layer", "x", "bias"),
    ),
    Has(
        f"{EMBEDDING}:UnquantizedEmbeddingMethod",
        "We copy rows of an LM head only if it has this method or `UnquantizedLinearMethod`.",
    ),
    Sets(
        f"{EMBEDDING}:VocabParallelEmbedding.__init__",
        "Show which rows of the LM head a rank holds.",
        ("org_vocab_size", "tp_size", "tp_rank", "shard_indices"),
    ),
    Takes(
        f"{EMBEDDING}:VocabParallelEmbeddingShardIndices",
        "Show which rows of the LM head a rank holds.",
        keyword=("org_vocab_start_index", "org_vocab_end_index"),
    ),
    Takes(
        "vllm.distributed:tensor_model_parallel_all_reduce",
        "Gives each rank its rows of the draft's vocabulary, once.",
        positional=("input_",),
    ),
    Takes(
        "vllm.tokenizers:cached_tokenizer_from_config",
        "The order of the tokenizer's merges shows which tokens are frequent.",
        positional=("model_config",),
    ),
)

EXPECTATIONS = (*PROPOSE, *ATTENTION, *DRAFT_HEAD)
