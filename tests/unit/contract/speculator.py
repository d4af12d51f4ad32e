"""Propose on V2: `speculator.py`, `early_steps.py` and `draft_choice.py` of `runner_v2/`."""

from tests.unit.contract.expectations import Calls, Has, Reads, Sets, Takes
from tests.unit.contract.graphs import GRAPHS
from tests.unit.contract.runner_v2 import GPU

SPECULATOR = f"{GPU}.spec_decode.speculator:DraftModelSpeculator"

SET_UP = (
    Takes(
        SPECULATOR,
        "Subclassed by `LayerSkipSpeculator`.",
        positional=("vllm_config", "device"),
    ),
    Sets(
        f"{SPECULATOR}.__init__",
        "Read by our speculator: the configuration, and the buffers of a draft step.",
        (
            *("vllm_config", "speculative_config", "device", "num_speculative_steps"),
            *("max_num_reqs", "vocab_size", "dp_size", "dp_rank", "input_buffers"),
            *("idx_mapping", "temperature", "seeds", "draft_tokens", "draft_logits"),
        ),
    ),
    Sets(
        f"{SPECULATOR}.__init__",
        "Overridden by a property: vLLM does not update it when it fits the context to memory.",
        ("max_model_len",),
        until="0.32",
    ),
    Has(
        SPECULATOR,
        "Overridden by the same property, which 0.32 needs.",
        properties=("max_model_len",),
        since="0.33",
    ),
    Sets(
        "vllm.v1.worker.gpu_worker:Worker.update_max_model_len",
        "Updates the configuration's value, which our property reads.",
        ("model_config.max_model_len",),
    ),
    Sets(
        f"{SPECULATOR}.__init__",
        "Set to the longest context of each propose.",
        ("draft_max_seq_len",),
    ),
    Takes(
        f"{SPECULATOR}.load_draft_model",
        "Abstract; ours returns the target.",
        positional=("target_model", "target_attn_layer_names"),
    ),
    Takes(
        f"{SPECULATOR}.load_model",
        "Replaced: the original takes the layers that loading adds for the draft's, and marks them "
        "(`is_draft_layer`). Our draft's layers are the target's.",
        positional=("target_model",),
    ),
    Sets(
        f"{SPECULATOR}.load_model",
        "Ours sets the same: the target and its early layers' names.",
        ("model", "draft_attn_layer_names"),
    ),
    Takes(f"{SPECULATOR}._validate_local_argmax_reduction", "Our `load_model` calls it too."),
    Sets(
        f"{SPECULATOR}.set_attn",
        "Brings the target's blocks and state, and builds groups for the early layers.",
        ("model_state", "kv_cache_config", "attn_groups", "block_tables"),
    ),
    Reads(
        f"{SPECULATOR}.set_attn",
        "Gives the early layers their own metadata builders.",
        ("self.draft_attn_layer_names",),
    ),
    Sets(
        f"{SPECULATOR}._configure_decode_metadata_update",
        "Shows whether a graph can hold a whole propose.",
        ("supports_decode_metadata_update",),
    ),
    *(
        Takes(f"{GPU}.spec_decode.speculator:BaseSpeculator.{method}", "Abstract.", positional)
        for method, positional in (
            ("init_cudagraph_manager", ("cudagraph_mode",)),
            ("capture", ()),
        )
    ),
    Takes(
        f"{GPU}.spec_decode.speculator:BaseSpeculator.propose",
        "Abstract; ours takes the same parameters by the same names.",
        positional=(
            *("input_batch", "attn_metadata", "slot_mappings", "last_hidden_states"),
            *("aux_hidden_states", "num_sampled", "num_rejected", "last_sampled"),
            *("next_prefill_tokens", "temperature", "seeds", "dp_sync_state", "dummy_run"),
            *("skip_attn_for_dummy_run", "mm_inputs", "is_profile", "num_speculative_tokens"),
        ),
    ),
)

PROPOSE = (
    Reads(
        f"{SPECULATOR}._copy_request_inputs",
        "We copy these inputs ourselves; slot -1 masks a row.",
        ("self.temperature.copy_", "self.seeds.copy_", "self.idx_mapping.fill_"),
    ),
    Sets(
        f"{GPU}.model_runner:GPUModelRunner.__init__",
        "Hold a step's results at fixed addresses, from which a captured propose reads them.",
        ("req_states", "input_buffers"),
    ),
    Sets(
        f"{GPU}.states:RequestState.__init__",
        "The token that each request sampled last, by slot.",
        ("last_sampled_tokens",),
    ),
    Reads(
        f"{GPU}.model_runner:GPUModelRunner.prepare_inputs",
        "This buffer holds a step's lengths by row, whichever graph runs.",
        ("self.input_buffers.seq_lens[:num_reqs_padded]",),
    ),
    Takes(
        f"{SPECULATOR}._build_uniform_attn_metadata",
        "Builds the metadata of an eager draft step.",
        positional=(
            *("batch_desc", "num_reqs", "num_query_per_req", "seq_lens_cpu_upper_bound"),
            "step",
        ),
    ),
    Takes(
        f"{SPECULATOR}._update_draft_decode_metadata",
        "Refreshes that metadata on the device, inside a graph.",
        positional=("attn_metadata", "num_reqs"),
    ),
    Takes(
        f"{SPECULATOR}.sample_draft",
        "Overridden, original called: samples a step's drafts.",
        positional=(
            *("hidden_states", "sample_src_positions", "idx_mapping", "temperature", "seeds"),
            *("draft_step", "draft_logits"),
        ),
    ),
    Takes(
        f"{SPECULATOR}.compute_draft_logits",
        "Overridden: returns the logits of the draft's vocabulary.",
        positional=("hidden_states", "spec_step_idx"),
    ),
    Takes(
        f"{SPECULATOR}.get_draft_top_tokens",
        "Overridden: a draft vocabulary skips the reduction over ranks.",
        positional=("hidden_states", "spec_step_idx"),
    ),
    *(
        Calls(f"{SPECULATOR}.sample_draft", "Calls ours.", f"self.{method}", num_positional=2)
        for method in ("compute_draft_logits", "get_draft_top_tokens")
    ),
    Sets(
        f"{GPU}.input_batch:InputBuffers.__init__",
        "Filled for each draft step.",
        ("input_ids", "positions", "seq_lens", "query_start_loc"),
    ),
    Takes(
        f"{GPU}.block_table:BlockTables.compute_slot_mappings",
        "Computes a draft step's slots on the device; none for a masked row.",
        positional=("idx_mapping", "query_start_loc", "positions", "num_tokens_padded"),
    ),
    Sets(
        f"{GPU}.block_table:BlockTables.__init__",
        "The target's block tables in the step, by KV cache group.",
        ("input_block_tables",),
    ),
    Takes(
        f"{GPU}.attn_utils:build_slot_mappings_by_layer",
        "Maps each layer to a draft step's slots.",
        positional=("slot_mappings", "kv_cache_config"),
    ),
    Takes(
        "vllm.v1.worker.utils:AttentionGroup.map_to_kernel_block_table",
        "Updates the block table that a graph has recorded.",
        positional=("block_table",),
    ),
    Has(
        "vllm.v1.worker.utils:AttentionGroup",
        "Finds its block tables among those of all groups.",
        ("kv_cache_group_id",),
    ),
    Takes(
        "vllm.forward_context:set_forward_context",
        "One context per draft step.",
        positional=("attn_metadata", "vllm_config"),
        keyword=(
            *("num_tokens", "num_tokens_across_dp", "cudagraph_runtime_mode"),
            *("batch_descriptor", "slot_mapping"),
        ),
    ),
    Takes(
        "vllm.forward_context:BatchDescriptor",
        "vLLM finds piecewise graphs by it, so a draft step has its own.",
        positional=("num_tokens",),
    ),
    Takes(
        "vllm.utils.torch_utils:async_tensor_h2d",
        "Copies the mask of requests in the middle of their prompts.",
        positional=("data", "device"),
    ),
)

RANKS = (
    Takes(
        f"{GPU}.dp_utils:dispatch_cg_and_sync_dp",
        "Finds the graph of a batch size, on which ranks agree.",
        positional=("cudagraph_manager", "num_reqs", "num_tokens"),
        keyword=("uniform_token_count", "dp_size", "dp_rank", "need_eager", "dp_sync_state"),
    ),
    Takes(
        f"{SPECULATOR}._build_uniform_batch_dp_sync",
        "Carries the ranks' agreement on the target's step to ours.",
        positional=("target_dp_sync_state", "num_reqs"),
    ),
    Has(
        f"{GPU}.dp_utils:DPSyncState",
        "Holds the rows of each rank. vLLM 0.33 counts requests before padding, and our dummy step "
        "runs no more.",
        ("num_tokens_across_dp", "num_reqs"),
    ),
    Takes(
        f"{GRAPHS}:BatchExecutionDescriptor",
        "Describes an eager draft step.",
        positional=("cg_mode", "num_tokens", "num_reqs"),
    ),
    Has(
        "vllm.config.compilation:CUDAGraphMode",
        "We capture whole propose steps or none.",
        ("FULL", "FULL_DECODE_ONLY", "NONE", "decode_mode"),
    ),
)

EXPECTATIONS = (*SET_UP, *PROPOSE, *RANKS)
