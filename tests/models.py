"""Small random models whose greedy output varies enough to reveal a wrong cache."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

EOS_TOKEN_ID = 256
VOCAB_SIZE = 320

ORIGINAL_CONTEXT = 64
"""Positions that a model with a scaled rope is meant to have been trained on."""
_SCALED = {
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "original_max_position_embeddings": ORIGINAL_CONTEXT,
}
ROPES: dict[str, dict] = {
    "default": {},
    "yarn": {"rope_type": "yarn"} | _SCALED,
    # meta-llama/Llama-3.1-8B, whose original context is 8192.
    "llama3": {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0} | _SCALED,
}


@dataclass(frozen=True)
class RandomLlama:
    """Shape of a random checkpoint; equal shapes have equal weights."""

    num_layers: int = 6
    num_heads: int = 4
    num_kv_heads: int = 2
    tied: bool = False
    vocab_size: int = VOCAB_SIZE
    max_position_embeddings: int = 2048
    late_scale: float = 1.0
    """Factor on the output projections of layers [late_from, L); at 0 draft and target agree."""
    late_from: int = 1
    eos_token_id: int = EOS_TOKEN_ID
    initializer_range: float = 0.1
    rope: str = "default"
    """Scaling of the rotary embedding, a key of `ROPES`."""

    @property
    def name(self) -> str:
        values = "-".join(f"{value}" for value in vars(self).values())
        return f"{type(self).__name__}-{values}"

    def save(self, directory: Path) -> str:
        path = directory / self.name
        if not path.exists():
            self._model().save_pretrained(path)
            byte_tokenizer().save_pretrained(path)
        return str(path)

    def _shape(self) -> dict:
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": 32 * self.num_heads,
            "intermediate_size": 96 * self.num_heads,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": self.max_position_embeddings,
            "initializer_range": self.initializer_range,
            "bos_token_id": None,
            "eos_token_id": self.eos_token_id,
        } | ({"rope_parameters": ROPES[self.rope]} if ROPES[self.rope] else {})

    def _build(self) -> PreTrainedModel:
        return LlamaForCausalLM(LlamaConfig(**self._shape()))

    @torch.no_grad()
    def _model(self) -> PreTrainedModel:
        torch.manual_seed(1)
        model = self._build()
        for layer in model.model.layers[self.late_from :]:
            layer.self_attn.o_proj.weight *= self.late_scale
            layer.mlp.down_proj.weight *= self.late_scale
        return model.to(torch.float32)


@dataclass(frozen=True)
class Family:
    """A family's classes and settings."""

    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    particulars: dict
    """Settings besides the shape."""
    window: dict
    """Settings that limit the attention of all layers to `sliding_window` tokens."""


FAMILIES = {
    # mistralai/Mistral-7B-v0.1; its window is 4096.
    "mistral": Family(
        MistralConfig,
        MistralForCausalLM,
        {"rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "sliding_window": None},
        {},
    ),
    # Qwen/Qwen2-0.5B
    "qwen2": Family(
        Qwen2Config,
        Qwen2ForCausalLM,
        {"rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "use_sliding_window": False},
        {"use_sliding_window": True, "max_window_layers": 0},
    ),
    # Qwen/Qwen3-0.6B; its heads are wider than hidden size / number of heads.
    "qwen3": Family(
        Qwen3Config,
        Qwen3ForCausalLM,
        {
            "rms_norm_eps": 1e-6,
            "rope_theta": 1_000_000.0,
            "head_dim": 64,
            "attention_bias": False,
            "use_sliding_window": False,
        },
        {"use_sliding_window": True, "max_window_layers": 0},
    ),
}


@dataclass(frozen=True)
class RandomModel(RandomLlama):
    """A random checkpoint of another family, scaled down from its published configuration."""

    family: str = "mistral"
    sliding_window: int | None = None

    def _build(self) -> PreTrainedModel:
        family = FAMILIES[self.family]
        window = {"sliding_window": self.sliding_window} | family.window
        config = family.particulars | (window if self.sliding_window else {})
        model = family.model(family.config(**(self._shape() | config)))
        for name, parameter in model.named_parameters():
            # Biases start at 0 and norms at 1, which would hide a missing one.
            if name.endswith((".bias", "q_norm.weight", "k_norm.weight")):
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
        return model


def first_layers(path: str, num_layers: int) -> PreTrainedModel:
    """A checkpoint as transformers' float32 model, without the layers from `num_layers` on."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.model.layers = model.model.layers[:num_layers]
    model.config.num_hidden_layers = num_layers
    return model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, with ids below 256, then the end of text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
    )
    return fast
