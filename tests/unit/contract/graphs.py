"""CUDA graphs of V2: `runner_v2/graphs.py`."""

from tests.unit.contract.expectations import Calls, Has, InOrder, Reads, Sets, Takes
from tests.unit.contract.runner_v2 import GPU, RUNNER_V2

GRAPHS = f"{GPU}.cudagraph_utils"
DRAFT_GRAPHS = f"{GPU}.spec_decode.target_dependent_ar.cudagraph_utils"

TARGET_GRAPHS = (
    Takes(
        f"{GRAPHS}:ModelCudaGraphManager",
        "Subclassed by `VerifyGraphManager`, which captures every K and steps that resume.",
        positional=("vllm_config", "device", "cudagraph_mode", "decode_query_len"),
        keyword=("lora_capture_cases", "varlen_decode", "ubatch_runner"),
    ),
    InOrder(
        f"{RUNNER_V2}.initialize_kv_cache",
        "Makes the target's graph manager, gives our speculator its attention groups, then asks it "
        "for its own manager. May run twice, because vLLM profiles memory with graphs.",
        (
            "ModelCudaGraphManager",
            "self.speculator.set_attn",
            "self.speculator.init_cudagraph_manager",
        ),
    ),
    Sets(
        f"{RUNNER_V2}.initialize_kv_cache",
        "Overridden, original called; then our manager replaces the target's graph manager.",
        ("cudagraph_manager", "block_tables", "attn_groups", "kv_cache_config"),
    ),
    Sets(
        f"{GRAPHS}:CudaGraphManager.__init__",
        "The descriptors to capture, the candidates for a batch and the graphs themselves.",
        (
            *("_capture_descs", "_candidates", "graphs", "decode_query_len", "max_num_reqs"),
            *("cudagraph_mode", "lora_capture_cases", "vllm_config", "device"),
        ),
    ),
    InOrder(
        f"{GRAPHS}:CudaGraphManager.__init__",
        "Calls ours last, which fills both for one query length after another.",
        (
            *("self.decode_query_len", "self._candidates", "self._capture_descs"),
            "self._init_candidates",
        ),
    ),
    Takes(
        f"{GRAPHS}:CudaGraphManager._init_candidates",
        "Overridden, original called once for each K.",
    ),
    Reads(
        f"{GRAPHS}:CudaGraphManager._init_candidates",
        "Uses one query length unless a schedule of K names several; ours names K alone.",
        (
            "[self.decode_query_len]",
            "self.decode_query_len > self.vllm_config.num_speculative_tokens",
        ),
    ),
    Reads(
        f"{GRAPHS}:CudaGraphManager._init_candidates",
        "Groups descriptors by mode, and candidates by number of tokens and adapters.",
        ("self._capture_descs[mode]", "self._candidates.setdefault(key, [])"),
    ),
    Takes(f"{GRAPHS}:CudaGraphManager.needs_capture", "Checks for descriptors to capture."),
    Takes(
        f"{GRAPHS}:CudaGraphManager.capture",
        "Records one graph for each descriptor.",
        positional=("create_forward_fn", "progress_bar_desc"),
    ),
    Calls(
        f"{GRAPHS}:CudaGraphManager.capture",
        "Prepares the inputs twice: for the warm-up and for the capture.",
        "create_forward_fn",
        num_positional=1,
        keyword=("warmup",),
    ),
    Takes(
        f"{GRAPHS}:CudaGraphManager.dispatch",
        "Overridden, original called: finds the graph of the exit from which a step resumes, and "
        "none for a step that observes.",
        positional=("num_reqs", "num_tokens"),
    ),
    Reads(
        f"{GRAPHS}:CudaGraphManager.dispatch",
        "Takes the first graph that fits a batch.",
        ("self._candidates[key]",),
    ),
    Reads(
        f"{GRAPHS}:_is_compatible",
        "A batch that is not marked uniform gets no graph of a uniform batch.",
        ("desc.uniform_token_count == uniform_token_count",),
    ),
    Has(
        "vllm.config.compilation:CUDAGraphMode",
        "Graphs resume only if decode batches have their own graphs.",
        ("FULL", "PIECEWISE", "NONE", "separate_routine"),
    ),
    Takes(
        f"{GRAPHS}:ModelCudaGraphManager.capture",
        "Overridden, original called mode by mode.",
        positional=(
            *("model", "model_state", "input_buffers", "intermediate_tensors", "block_tables"),
            *("attn_groups", "kv_cache_config"),
        ),
    ),
    Calls(
        f"{RUNNER_V2}.capture_model",
        "Captures the target's graphs before ours.",
        "self.cudagraph_manager.capture",
        num_positional=7,
    ),
    Calls(f"{RUNNER_V2}.capture_model", "Captures ours.", "self.speculator.capture"),
    Calls(
        f"{GRAPHS}:ModelCudaGraphManager.capture",
        "Records the target with the exit states that our model state returns.",
        "model_state.prepare_dummy_inputs",
        num_positional=2,
    ),
    Takes(
        f"{GRAPHS}:CudaGraphManager.run_fullgraph",
        "Replays a graph.",
        positional=("desc",),
    ),
    Reads(
        f"{GRAPHS}:profile_cudagraph_memory",
        "Drops a speculator's graph managers after profiling, in whichever attribute they are.",
        ("vars(speculator).items()", "isinstance(value, CudaGraphManager)"),
    ),
)

GRAPHS_OF_DRAFTS = (
    Takes(
        f"{DRAFT_GRAPHS}:SpeculatorCudaGraphManager",
        "Subclassed by `ProposeGraphManager`.",
        positional=("vllm_config", "device", "cudagraph_mode", "decode_query_len"),
    ),
    Takes(
        f"{DRAFT_GRAPHS}:SpeculatorBatchDescriptor",
        "We make one for each batch size and K, from vLLM's descriptor of the batch size.",
        positional=("cg_mode", "num_tokens", "num_reqs"),
        keyword=("uniform_token_count", "num_speculative_tokens"),
    ),
    Takes(
        f"{DRAFT_GRAPHS}:SpeculatorCudaGraphManager.capture",
        "Captures our propose steps.",
        positional=(
            *("forward_fn", "model_state", "input_buffers", "block_tables", "attn_groups"),
            "kv_cache_config",
        ),
        keyword=("progress_bar_desc",),
    ),
    Calls(
        f"{DRAFT_GRAPHS}:SpeculatorCudaGraphManager.capture",
        "Calls ours.",
        "forward_fn",
        num_positional=6,
    ),
    Reads(
        f"{DRAFT_GRAPHS}:SpeculatorCudaGraphManager.capture",
        "Passes the descriptor's K if a draft step has one token per request.",
        ("self.decode_query_len == 1", "desc.num_speculative_tokens"),
    ),
    Takes(
        f"{DRAFT_GRAPHS}:SpeculatorCudaGraphManager.specialize_spec_tokens",
        "Finds the graph of a step's K; without one, the step runs eagerly.",
        positional=("desc", "num_speculative_tokens"),
    ),
    Calls(
        f"{GRAPHS}:prepare_inputs_to_capture",
        "Builds a capture's metadata with our model state, from the early layers' groups.",
        "model_state.prepare_attn",
        num_positional=6,
        keyword=("for_capture",),
    ),
)

EXPECTATIONS = (*TARGET_GRAPHS, *GRAPHS_OF_DRAFTS)
