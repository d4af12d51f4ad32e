"""Models: `models/`, one class per family."""

from tests.unit.contract.expectations import Reads, Sets, Takes

LLAMA = "vllm.model_executor.models.llama:Llama"
MISTRAL = "vllm.model_executor.models.mistral:Mistral"
QWEN2 = "vllm.model_executor.models.qwen2:Qwen2"
QWEN3 = "vllm.model_executor.models.qwen3:Qwen3"

FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3)
OWN_MODULES = (LLAMA, QWEN2, QWEN3)
"""Mistral inherits Llama's constructors."""
OWN_DECODERS = (LLAMA, QWEN2)
"""Qwen3's decoder derives from Qwen2's."""

LAYER = ("positions", "hidden_states", "residual")
FORWARD = ("input_ids", "positions", "intermediate_tensors", "inputs_embeds")

EXPECTATIONS = (
    Takes(
        "vllm.compilation.decorators:support_torch_compile",
        "Decorates the segments.",
        positional=("cls",),
        keyword=("dynamic_arg_dims",),
    ),
    Reads(
        "vllm.compilation.decorators:_model_hash_key",
        "vLLM finds a compiled graph on disk by these, so each segment has its own class.",
        ("fn.__qualname__", "fn.__code__.co_firstlineno"),
    ),
    Takes(
        "vllm.compilation.backends:set_model_tag",
        "Gives each segment its own compile cache.",
        positional=("tag",),
    ),
    *(
        Takes(
            f"{family}ForCausalLM",
            "Subclassed with `SplitForwardMixin` or `EarlyExitMixin` before it.",
            keyword=("vllm_config", "prefix"),
        )
        for family in FAMILIES
    ),
    *(
        Sets(f"{family}ForCausalLM.__init__", "The segments refer to them.", ("model", "config"))
        for family in OWN_MODULES
    ),
    *(
        Takes(
            f"{family}ForCausalLM.forward",
            "Replaced by the segments in sequence. They omit what the decoder's forward does "
            "beyond embedding, layers and final norm; the engine tests compare the outputs.",
            positional=FORWARD,
        )
        for family in FAMILIES
    ),
    *(
        Takes(
            f"{family}ForCausalLM.embed_input_ids",
            "Called by the draft if prompts may be embeddings.",
            positional=("input_ids",),
        )
        for family in FAMILIES
    ),
    *(
        Takes(
            f"{family}ForCausalLM.load_weights",
            "Overridden for early exit; original called without the weights of later layers.",
            positional=("weights",),
        )
        for family in FAMILIES
    ),
    *(
        Takes(f"{LLAMA}ForCausalLM.{method}", "Serves target and draft.", ("hidden_states",))
        for method in ("compute_logits", "get_top_tokens")
    ),
    Takes(
        "vllm.model_executor.models.interfaces:LocalArgmaxMixin.get_top_tokens",
        "Added to Qwen2, which lacks it in vLLM.",
        positional=("hidden_states",),
    ),
    Sets(
        f"{QWEN2}ForCausalLM.__init__",
        "`LocalArgmaxMixin` needs them.",
        ("lm_head", "logits_processor"),
    ),
    *(
        Sets(
            f"{family}Model.__init__",
            "The segments consist of these.",
            ("embed_tokens", "layers", "norm"),
        )
        for family in OWN_DECODERS
    ),
    *(
        Reads(
            f"{family}Model.__init__",
            "vLLM builds as many layers as early exit sets.",
            ("config.num_hidden_layers",),
        )
        for family in OWN_DECODERS
    ),
    *(
        Takes(
            f"{family}DecoderLayer.forward",
            "Called by the segments; returns hidden states and residual.",
            positional=LAYER,
        )
        for family in FAMILIES
    ),
    *(
        Sets(
            f"{family}DecoderLayer.__init__",
            "Leads to a layer's name in the forward context.",
            ("self_attn",),
        )
        for family in OWN_MODULES
    ),
    *(
        Sets(
            f"{family}Attention.__init__",
            "Leads to a layer's name in the forward context.",
            ("attn",),
        )
        for family in OWN_MODULES
    ),
    Sets(
        "vllm.model_executor.layers.attention:Attention.__init__",
        "The layer's name in the forward context.",
        ("layer_name",),
    ),
    Takes(
        "vllm.model_executor.layers.layernorm:RMSNorm.forward_native",
        "The final norm: the segments pass and receive both tensors. It may overwrite its inputs.",
        positional=("x", "residual"),
    ),
    Takes(
        "vllm.model_executor.layers.vocab_parallel_embedding:VocabParallelEmbedding.forward",
        "Embeds token ids.",
        positional=("input_",),
    ),
    Reads(
        "vllm.model_executor.model_loader.default_loader:DefaultModelLoader.get_all_weights",
        "Skips files without any weight that early exit uses.",
        ("getattr(model, 'is_unused_checkpoint_weight', None)",),
    ),
    Takes(
        "vllm.model_executor.models.utils:extract_layer_index",
        "Finds the layer in a weight's name.",
        positional=("layer_name",),
    ),
)
