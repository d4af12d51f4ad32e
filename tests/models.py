"""Small random Llamas, whose greedy output wanders enough to show a wrong cache."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

EOS_TOKEN_ID = 256
VOCAB_SIZE = 320


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
    """Factor on the output projections of layers [late_from, L): at 0 the draft is the target."""
    late_from: int = 1
    eos_token_id: int = EOS_TOKEN_ID
    initializer_range: float = 0.1

    @property
    def name(self) -> str:
        return "-".join(f"{value}" for value in vars(self).values())

    def save(self, directory: Path) -> str:
        path = directory / self.name
        if not path.exists():
            self._model().save_pretrained(path)
            byte_tokenizer().save_pretrained(path)
        return str(path)

    @torch.no_grad()
    def _model(self) -> LlamaForCausalLM:
        torch.manual_seed(1)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=self.vocab_size,
                hidden_size=32 * self.num_heads,
                intermediate_size=96 * self.num_heads,
                num_hidden_layers=self.num_layers,
                num_attention_heads=self.num_heads,
                num_key_value_heads=self.num_kv_heads,
                tie_word_embeddings=self.tied,
                max_position_embeddings=self.max_position_embeddings,
                initializer_range=self.initializer_range,
                bos_token_id=None,
                eos_token_id=self.eos_token_id,
            )
        )
        for layer in model.model.layers[self.late_from :]:
            layer.self_attn.o_proj.weight *= self.late_scale
            layer.mlp.down_proj.weight *= self.late_scale
        return model.to(torch.float32)


def first_layers(path: str, num_layers: int) -> LlamaForCausalLM:
    """A checkpoint as transformers' float32 model, without the layers from `num_layers` on."""
    model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.model.layers = model.model.layers[:num_layers]
    model.config.num_hidden_layers = num_layers
    return model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, then the end of text: ids below 256 are the bytes' own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
    )
    return fast
