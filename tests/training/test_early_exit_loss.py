"""The training forward against its definition, computed with every logit in memory."""

import subprocess
import sys

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3Config,
)

from layerskip_vllm.training.early_exit_loss import IGNORED, prepare_for_layerskip

NUM_LAYERS = 5


TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_llama(**overrides) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**(TINY | overrides)))


@pytest.fixture
def batch():
    """Three rows of 12 tokens; the second holds two documents."""
    torch.manual_seed(1)
    input_ids = torch.randint(0, 64, (3, 12))
    labels = input_ids.clone()
    labels[1, 5] = labels[2, 9:] = IGNORED
    position_ids = torch.arange(12).repeat(3, 1)
    position_ids[1, 5:] -= 5
    return {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}


def by_definition(model, batch, exit_weights):
    """Sum over exits of weight * mean cross entropy, on the plain model."""
    output = model.model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        output_hidden_states=True,
        use_cache=False,
    )
    states = [model.model.norm(state) for state in output.hidden_states[:-1]]
    states.append(output.last_hidden_state)
    targets = batch["labels"][:, 1:].flatten()
    logits = {exit_: model.lm_head(states[exit_])[:, :-1].flatten(0, 1) for exit_ in exit_weights}
    losses = {exit_: cross_entropy(some, targets) for exit_, some in logits.items()}
    return sum(weight * losses[exit_] for exit_, weight in exit_weights.items()), losses, logits


@pytest.mark.parametrize("tied", [False, True])
def test_loss_and_gradients_equal_the_definition(batch, tied):
    exit_weights = {2: 0.25, 3: 0.15, NUM_LAYERS: 0.6}
    plain, ours = (tiny_llama(tie_word_embeddings=tied) for _ in range(2))
    expected, expected_losses, _ = by_definition(plain, batch, exit_weights)
    expected.backward()
    prepare_for_layerskip(ours)
    output = ours(**batch, exit_weights=exit_weights)
    output["loss"].backward()
    torch.testing.assert_close(output["loss"], expected)
    torch.testing.assert_close(
        output["exit_losses"] / output["num_targets"],
        torch.stack(list(expected_losses.values())).detach(),
    )
    for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("family", [MistralConfig, Qwen2Config, Qwen3Config])
def test_llama_like_families_train_alike(batch, family):
    exit_weights = {2: 0.4, NUM_LAYERS: 0.6}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        family(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
        )
    )
    expected, _, _ = by_definition(model, batch, exit_weights)
    prepare_for_layerskip(model)
    kept_rows = [[0, 1, 2]] * NUM_LAYERS
    output = model(**batch, exit_weights=exit_weights, kept_rows=kept_rows)
    torch.testing.assert_close(output["loss"], expected)
    skipped = model(**batch, exit_weights=exit_weights, kept_rows=[[0, 2]] * NUM_LAYERS)
    assert skipped["loss"] != expected


def test_agreement_counts_top_1_predictions_equal_to_the_last_layers(batch):
    model = tiny_llama()
    _, _, logits = by_definition(model, batch, dict.fromkeys(range(1, NUM_LAYERS + 1), 0.0))
    is_target = batch["labels"][:, 1:].flatten() != IGNORED
    predictions = {exit_: some.argmax(-1)[is_target] for exit_, some in logits.items()}
    expected = [int((predictions[exit_] == predictions[NUM_LAYERS]).sum()) for exit_ in (1, 4)]
    prepare_for_layerskip(model)
    output = model(**batch, exit_weights={NUM_LAYERS: 1.0}, compared_exits=[1, 4])
    assert output["num_agreeing"].tolist() == expected
    assert 0 < expected[0] < expected[1]


def test_predictions_ignore_the_document_before_in_the_row(batch):
    model = tiny_llama()
    prepare_for_layerskip(model)
    weights = {2: 0.5, NUM_LAYERS: 0.5}
    batch["labels"][:, :6] = IGNORED
    batch["labels"][[0, 2]] = IGNORED
    one = model(**batch, exit_weights=weights)["loss"]
    batch["input_ids"][1, :5] = (batch["input_ids"][1, :5] + 1) % 64
    other = model(**batch, exit_weights=weights)["loss"]
    torch.testing.assert_close(one, other)
    batch["input_ids"][1, 5] = (batch["input_ids"][1, 5] + 1) % 64
    assert model(**batch, exit_weights=weights)["loss"] != other


def test_dropped_rows_equal_a_model_without_these_layers(batch):
    model = tiny_llama()
    prepare_for_layerskip(model)
    kept_rows = [[0, 1, 2]] * 2 + [[]] + [[0, 1, 2]] * 2
    dropped = model(**batch, exit_weights={NUM_LAYERS: 1.0}, kept_rows=kept_rows)["loss"]
    without = tiny_llama()
    del without.model.layers[2]
    without.config.num_hidden_layers -= 1
    expected, _, _ = by_definition(without, batch, {NUM_LAYERS - 1: 1.0})
    torch.testing.assert_close(dropped, expected)


def test_gradient_checkpointing_changes_nothing(batch):
    models = [tiny_llama() for _ in range(2)]
    models[1].gradient_checkpointing_enable()
    kept_rows = [[0, 1, 2], [0, 2], [1], [], [0, 1, 2]]
    for model in models:
        prepare_for_layerskip(model)
        weights = {3: 0.4, NUM_LAYERS: 0.6}
        model.train()(**batch, exit_weights=weights, kept_rows=kept_rows)["loss"].backward()
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize(
    ("config", "scale"),
    [(GraniteConfig(**TINY, logits_scaling=8.0), 0.125), (CohereConfig(**TINY), 0.0625)],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_a_factor_of_the_logits_holds_at_every_exit(batch, config, scale):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    own = model(**batch, use_cache=False).loss
    _, _, logits = by_definition(model, batch, {2: 0.0})
    targets = batch["labels"][:, 1:].flatten()
    early = cross_entropy(scale * logits[2], targets)
    prepare_for_layerskip(model)
    output = model(**batch, exit_weights={2: 0.5, NUM_LAYERS: 0.5})
    torch.testing.assert_close(output["loss"], (early + own) / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (Gemma2Config(**TINY, head_dim=8), "Gemma2ForCausalLM computes more than a factor"),
        (MixtralConfig(**TINY), "MixtralForCausalLM is a mixture of experts"),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_a_model_with_another_loss_is_refused_by_name(config, reason, dtype):
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    with pytest.raises(ValueError, match=reason):
        prepare_for_layerskip(model)


def test_another_term_of_the_loss_is_refused():
    model = tiny_llama()
    loss_function = model.loss_function
    model.loss_function = lambda **kwargs: loss_function(**kwargs) + 1.0
    with pytest.raises(ValueError, match="another term of its loss"):
        prepare_for_layerskip(model)


@pytest.mark.parametrize("num_items", [None, 0, torch.tensor(0)])
def test_a_batch_without_targets_adds_nothing(batch, num_items):
    model = tiny_llama()
    prepare_for_layerskip(model)
    batch["labels"][:] = IGNORED
    weights = {2: 0.5, NUM_LAYERS: 0.5}
    output = model(
        **batch, exit_weights=weights, num_items_in_batch=num_items, compared_exits=[1, 2]
    )
    output["loss"].backward()
    assert output["loss"] == 0
    assert all(not parameter.grad.any() for parameter in model.parameters())


def test_an_unsupported_model_is_named():
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=8))
    with pytest.raises(ValueError, match="GPT2LMHeadModel is not built like Llama"):
        prepare_for_layerskip(model)


PEAK = """
import torch
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
from layerskip_vllm.training.early_exit_loss import prepare_for_layerskip

def memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

torch.set_num_threads(1)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=16384, hidden_size=64, intermediate_size=128, num_hidden_layers=9,
    num_attention_heads=2, num_key_value_heads=2))
prepare_for_layerskip(model)
ids = torch.randint(0, 16384, (8, 256))
Path("/proc/self/clear_refs").write_text("5")  # the peak so far came from imports
before = memory("VmRSS")
for _ in range(2):
    model(ids, ids, {weights})["loss"].backward()
print(memory("VmHWM") - before)
"""


def peak_kib(num_exits: int) -> int:
    """Peak memory in KiB that training steps add, measured in a separate process."""
    weights = dict.fromkeys(range(10 - num_exits, 10), 1 / num_exits)
    code = PEAK.replace("{weights}", repr(weights))
    return int(subprocess.check_output([sys.executable, "-c", code], text=True))


def test_eight_exits_take_less_than_half_more_memory_than_one():
    one, eight = peak_kib(1), peak_kib(8)
    assert one < eight < 1.5 * one, f"{one} KiB with one exit, {eight} KiB with eight"
