"""Errors name the bad value, the range and the remedy before anything loads."""

import json
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
from transformers import GPT2Config, GPT2LMHeadModel
from vllm.config import ECTransferConfig, KVTransferConfig, StructuredOutputsConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.sample.logits_processor import LOGITSPROCS_GROUP

from layerskip_vllm.vllm_config import unsupported
from layerskip_vllm.vllm_config.self_speculation import num_layers_of
from layerskip_vllm.vllm_config.unsupported import SELF_SPECULATION_UNSUPPORTED
from tests.models import byte_tokenizer

pytestmark = pytest.mark.runner_v1
"""Engines here leave the model runner to vLLM; test_runner_choice.py has the others."""

SELF = {"spec_model": "self:3"}
NUM_LAYERS = 6


def early_exit(value: object, **options) -> dict:
    return {"additional_config": {"layerskip": {"early_exit": value} | options}}


EXIT = early_exit(3)


def create_engine_config(model: str, **flags):
    """What the user's process does before any engine starts or weight loads."""
    return EngineArgs(model, max_model_len=64, **flags).create_engine_config()


def options(**of_layerskip) -> dict:
    return SELF | {"additional_config": {"layerskip": of_layerskip}}


KV_TRANSFER = KVTransferConfig(kv_connector="ExampleConnector", kv_role="kv_both")
EC_TRANSFER = ECTransferConfig(ec_connector="ECExampleConnector", ec_role="ec_consumer")
MALFORMED = "whole number of at least 1, for example self:8"
TABLE = [
    ({"spec_model": "self:"}, f"'self:': expected self:E.*{MALFORMED}"),
    ({"spec_model": "self:x"}, f"'self:x': expected self:E.*{MALFORMED}"),
    ({"spec_model": "self:0"}, f"'self:0': expected self:E.*{MALFORMED}"),
    ({"spec_model": "self:-1"}, f"'self:-1': expected self:E.*{MALFORMED}"),
    ({"spec_model": "self:6"}, r"exit_layer=6 must be in \[1, 5\] for a 6-layer target"),
    ({"spec_model": "self:99"}, r"exit_layer=99 must be in \[1, 5\]"),
    (SELF | {"spec_tokens": 0}, r"num_speculative_tokens=0 must be a whole number in \[1, 128\]"),
    (SELF | {"spec_tokens": -2}, r"num_speculative_tokens=-2 must be"),
    (SELF | {"spec_tokens": 129}, r"num_speculative_tokens=129 must be"),
    (SELF | {"spec_tokens": 2.5}, r"num_speculative_tokens=2.5 must be"),
    (SELF | {"speculative_config": {"model": "self:3"}}, "contradicts --speculative-config"),
    (
        {"spec_tokens": 3, "speculative_config": {"model": "self:3", "num_speculative_tokens": 2}},
        "3 contradicts --speculative-config, which sets num_speculative_tokens=2 too",
    ),
    (SELF | {"spec_method": "ngram"}, "'self:3' does not take method='ngram'; it takes: model"),
    (
        SELF | {"speculative_config": {"draft_tensor_parallel_size": 1}},
        "does not take draft_tensor_parallel_size=1",
    ),
    (
        SELF | {"speculative_config": {"draft_sample_method": "loud"}},
        "draft_sample_method='loud'.*'greedy' or 'probabilistic'",
    ),
    (
        SELF | {"speculative_config": {"num_speculative_tokens_per_batch_size": [[2, 4, 1]]}},
        "first batch-size range must start at 1",
    ),
    (
        SELF | {"additional_config": {"layerskip": {"exit_cache": 1, "x": 2}}},
        "unknown key.*exit_cache, x; known keys: exit_query_cache",
    ),
    (
        SELF | {"additional_config": {"layerskip": {"exit_query_cache": "no"}}},
        "exit_query_cache='no' must be true or false",
    ),
    (SELF | {"additional_config": {"layerskip": 7}}, "=7 must be an object"),
    (SELF | {"enable_dbo": True}, "does not support dual batch overlap"),
    (
        SELF | {"tensor_parallel_size": 3},
        r"^speculative_config: Total number of attention heads \(4\) must be divisible by .* \(3\)",
    ),
    (options(adaptive=1), "layerskip.adaptive=1 must be true or false"),
    (options(stop_drafting=True), "unknown key in .*: stop_drafting; known keys"),
    (options(draft_vocab_size=-1), "draft_vocab_size=-1 must be a whole number.*0 stands for the"),
    (options(draft_vocab_size="8k"), "draft_vocab_size='8k' must be a whole number"),
    (
        options(draft_vocab_size=321),
        r"draft_vocab_size=321 must be in \[1, 320\], the model's vocabulary",
    ),
    (options(draft_vocab_size=64), "has no merges that say which tokens are frequent; name a file"),
    (options(draft_vocab_counts="x.json"), "'x.json' has no effect without draft_vocab_size"),
    (
        options(draft_vocab_size=64, draft_vocab_counts="nowhere.json"),
        "draft_vocab_counts='nowhere.json': expected a JSON object of token ids.*No such file",
    ),
    (
        {"additional_config": {"layerskip": {"exit_query_cache": True}}},
        "has no effect without self-speculation: add --speculative-model self:E",
    ),
    (
        SELF | {"speculative_config": {"num_speculative_tokens_per_batch_size": [["a", 4, 1]]}},
        r"per_batch_size=\[\['a', 4, 1\]\]: invalid literal",
    ),
    (
        SELF | {"speculative_config": {"num_speculative_tokens_per_batch_size": [[1, 1e999, 1]]}},
        r"per_batch_size=\[\[1, inf, 1\]\]: cannot convert float infinity",
    ),
    (
        {
            "speculative_config": {
                "model": "self:3",
                "num_speculative_tokens": 2,
                "num_speculative_tokens_per_batch_size": [[1, 4, 8]],
            }
        },
        "drafts up to 8 tokens, more than num_speculative_tokens=2",
    ),
    (SELF | {"pipeline_parallel_size": 2}, "does not support pipeline parallelism"),
    (
        SELF | {"tensor_parallel_size": 2, "decode_context_parallel_size": 2},
        "decode context parallelism",
    ),
    (
        SELF | {"tensor_parallel_size": 2, "prefill_context_parallel_size": 2},
        "prefill context parallelism",
    ),
    (
        SELF | {"enable_lora": True, "speculative_config": {"use_local_argmax_reduction": True}},
        "does not support LoRA with use_local_argmax_reduction=True: an adapter may change",
    ),
    (
        options(draft_vocab_size=64) | {"enable_lora": True},
        "does not support LoRA with layerskip.draft_vocab_size=64",
    ),
    (
        SELF | {"quantization": "fp8"},
        r"does not support quantization \(fp8; supported: compressed-tensors, auto_gptq, ",
    ),
    (
        SELF | {"enable_lora": True, "enable_prompt_embeds": True},
        "does not support LoRA beside prompt embeddings",
    ),
    (SELF | {"kv_offloading_size": 1.0}, "does not support KV offloading"),
    (SELF | {"ec_transfer_config": EC_TRANSFER}, "does not support encoder cache transfer"),
    (SELF | {"kv_transfer_config": KV_TRANSFER}, "does not support KV transfer; leave it out"),
    (SELF | {"weight_transfer_config": {"backend": "ipc"}}, "does not support weight transfer"),
    (
        SELF | {"kv_cache_dtype": "int8_per_token_head"},
        r"nor fp8 in all layers \(kv_cache_dtype='int8_per_token_head'; supported: auto, float16",
    ),
    (
        SELF | {"kv_cache_dtype": "fp8", "kv_cache_dtype_skip_layers": ["0"]},
        r"does not support a KV cache that is .* \(kv_cache_dtype_skip_layers=\['0'\]\); leave",
    ),
    (
        SELF | {"logits_processors": ["a:B"]},
        r"does not support custom logits processors \(logits_processors=\['a:B'\]\); leave it out",
    ),
    (
        SELF | {"structured_outputs_config": StructuredOutputsConfig(backend="lm-format-enforcer")},
        "does not support structured outputs by lm-format-enforcer; leave it out",
    ),
    (
        SELF | {"structured_outputs_config": {"backend": "lm-format-enforcer"}},
        "does not support structured outputs by lm-format-enforcer",
    ),
    (SELF | {"watermark_config": {"algorithm": "gumbel"}}, "does not support watermarking"),
    (SELF | {"enable_trace_replay": True}, "does not support trace replay"),
    (SELF | {"return_sampling_mask": True}, "does not support sampling masks"),
    (SELF | {"enable_batch_sharded_sampling": True}, "does not support batch-sharded sampling"),
    (
        SELF | {"quantization": "fp8_per_channel", "quantization_config": {"ignore": ["lm_head"]}},
        "does not support --quantization-config",
    ),
    (SELF | {"enable_sleep_mode": True}, "Sleep mode is not supported on current platform"),
    (
        SELF | {"async_scheduling": True},
        "does not support asynchronous scheduling on model runner V1",
    ),
    (SELF | {"worker_cls": "my.Worker"}, "does not support a worker class of your own"),
    (
        SELF | {"scheduler_cls": "my.Scheduler"},
        r"does not support a scheduler class of your own \(scheduler_cls='my.Scheduler'\)",
    ),
    (SELF | {"runner": "pooling"}, "pooling"),
    (early_exit(0), r"early_exit=0 must be in \[1, 6\] for a 6-layer model"),
    (early_exit(-1), r"early_exit=-1 must be in \[1, 6\]"),
    (early_exit(7), r"early_exit=7 must be in \[1, 6\]"),
    (early_exit(True), "early_exit=True must be a whole number, for example 8"),
    (early_exit("3"), "early_exit='3' must be a whole number"),
    (early_exit(3.0), "early_exit=3.0 must be a whole number"),
    (early_exit(None), "early_exit=None must be a whole number"),
    (SELF | EXIT, "early_exit=3 cannot be combined with self:3: .*; give one of them"),
    (
        EXIT | {"speculative_config": {"model": "self:4"}},
        "early_exit=3 cannot be combined with self:4",
    ),
    (
        early_exit(3, exit_query_cache=True),
        "{'exit_query_cache': True} has no effect without self-speculation",
    ),
    (early_exit(3, exit=1), "unknown key.*: exit; known keys: exit_query_cache, .*early_exit"),
    ({"additional_config": {"layerskip": {}}}, "{} has no effect without self-speculation"),
    ({"additional_config": {"layerskip": 3}}, "=3 must be an object"),
    (EXIT | {"enable_lora": True}, r"early exit \(early_exit=N\) does not support LoRA; leave it"),
    (EXIT | {"quantization": "fp8"}, r"does not support quantization \(fp8\)"),
    (EXIT | {"kv_offloading_size": 1.0}, "does not support KV offloading"),
    (EXIT | {"kv_cache_dtype": "fp8"}, "does not support a quantized KV cache"),
    (EXIT | {"kv_transfer_config": KV_TRANSFER}, "does not support KV transfer"),
    (EXIT | {"load_format": "sharded_state"}, "does not support a load format that restores"),
    (EXIT | {"runner": "pooling"}, "does not support the pooling runner"),
    (
        early_exit(1) | {"pipeline_parallel_size": 2},
        "early_exit=1 must be at least pipeline_parallel_size=2",
    ),
]


def type_name(value: object) -> str:
    """Represents a value that JSON cannot: test ids must be the same in every process."""
    return type(value).__name__


@pytest.mark.parametrize(
    ("flags", "message"), TABLE, ids=[json.dumps(row[0], default=type_name) for row in TABLE]
)
def test_bad_input_is_named(random_llama, flags, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        create_engine_config(random_llama(num_layers=NUM_LAYERS), **flags)


@pytest.mark.parametrize("flags", [{"spec_model": "self:1"}, early_exit(1)], ids=["self:1", "exit"])
def test_an_unsupported_architecture_lists_the_supported_ones(tmp_path, flags):
    GPT2LMHeadModel(
        GPT2Config(n_embd=64, n_layer=2, n_head=2, vocab_size=320, n_positions=512)
    ).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="GPT2LMHeadModel; supported: LlamaForCausalLM"):
        create_engine_config(str(tmp_path), **flags)


def test_a_multimodal_model_is_refused_by_its_architecture():
    # A stand-in, since vLLM's ModelConfig of a multimodal model needs torchvision, which has no
    # build for this PyTorch.
    config = SimpleNamespace(architecture="LlavaForConditionalGeneration")
    with pytest.raises(ValueError, match="LlavaForConditionalGeneration; supported: Llama"):
        num_layers_of(config, feature="self-speculation")


def test_the_rust_front_end_is_refused(random_llama, monkeypatch):
    """It loads no plugins, so nothing would check a request's draft options."""
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(ValueError, match=r"does not support the Rust front end \(VLLM_USE_RUST"):
        create_engine_config(random_llama(), spec_model="self:3")


def test_sleep_mode_is_refused_where_vllm_supports_it(random_llama):
    (is_used,) = (used for name, used in SELF_SPECULATION_UNSUPPORTED if name == "sleep mode")
    assert is_used(EngineArgs(random_llama(), enable_sleep_mode=True))


def test_an_installed_logits_processor_is_refused(random_llama, monkeypatch):
    """vLLM would silently ignore it."""
    installed = {LOGITSPROCS_GROUP: [EntryPoint("mine", "a.b:C", LOGITSPROCS_GROUP)]}
    monkeypatch.setattr(unsupported, "entry_points", lambda group: installed[group])
    words = r"custom logits processors \(mine=a.b:C, which a package has installed\)"
    with pytest.raises(ValueError, match=words):
        create_engine_config(random_llama(), spec_model="self:3")
    create_engine_config(random_llama())


@pytest.mark.parametrize("flags", [SELF, EXIT], ids=["self:E", "early exit"])
@pytest.mark.parametrize("shape", [{}, {"family": "qwen3", "sliding_window": 16}], ids=str)
def test_the_same_arguments_make_a_configuration_twice(random_model, random_llama, flags, shape):
    """Ray Data LLM does so."""
    model = random_model(**shape) if shape else random_llama()
    args = EngineArgs(model, max_model_len=64, **flags)
    first, second = args.create_engine_config(), args.create_engine_config()
    assert repr(second.speculative_config) == repr(first.speculative_config)
    assert second.scheduler_config == first.scheduler_config
