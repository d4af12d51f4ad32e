"""LayerSkip on the trainers that people use: transformers' and TRL's, with PEFT."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from layerskip_vllm.training.early_exit_loss import IGNORED
from layerskip_vllm.training.mixin import LayerSkipMixin
from layerskip_vllm.training.recipe import LayerSkipSection, load_recipe
from layerskip_vllm.training.run import (
    load_model,
    load_tokenizer,
    make_trainer,
    training_arguments,
)
from tests.models import byte_tokenizer
from tests.training.recipes import built, run, write_recipe

LAYERSKIP = LayerSkipSection(curriculum="fixed", exit_layers=[2], e_scale=1.0, p_max=0.2)

CHAT = [
    [{"role": "user", "content": f"{n} + 1?"}, {"role": "assistant", "content": f"{n + 1}."}]
    for n in range(24)
]

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}\n{% endgeneration %}"
    "{% else %}{{ m['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


class TrlTrainer(LayerSkipMixin, SFTTrainer):
    """The documented example."""


class PlainTrainer(LayerSkipMixin, Trainer):
    """The same on transformers' trainer."""


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=257,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=2,
            max_position_embeddings=128,
            eos_token_id=256,
        )
    )


def chat_tokenizer():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def arguments(directory, **more) -> dict:
    return {
        "output_dir": str(directory),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
    } | more


def reports_of(trainer) -> list[dict]:
    trainer.train()
    return [report for report in trainer.state.log_history if "loss" in report]


@pytest.mark.parametrize("packing", [False, True])
def test_sft_on_chat_data(tmp_path, packing):
    trainer = TrlTrainer(
        tiny(),
        SFTConfig(**arguments(tmp_path), packing=packing, max_length=64, assistant_only_loss=True),
        layerskip=LAYERSKIP,
        train_dataset=Dataset.from_dict({"messages": CHAT}),
        processing_class=chat_tokenizer(),
    )
    reports = reports_of(trainer)
    assert reports[-1]["loss"] < reports[0]["loss"]
    assert {"loss_exit_2", "loss_exit_4", "agreement_exit_2"} <= set(reports[0])


def test_transformers_trainer(tmp_path):
    rows = [
        {"input_ids": list(range(n, n + 16)), "labels": list(range(n, n + 16))} for n in range(24)
    ]
    trainer = PlainTrainer(
        tiny(),
        TrainingArguments(**arguments(tmp_path)),
        layerskip=LAYERSKIP,
        train_dataset=Dataset.from_list(rows),
    )
    reports = reports_of(trainer)
    assert reports[-1]["loss"] < reports[0]["loss"]
    assert "agreement_exit_2" in reports[0]


def test_lora_trains_its_adapter_alone(tmp_path):
    base = tiny()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    trainer = TrlTrainer(
        base,
        SFTConfig(**arguments(tmp_path), max_length=64),
        layerskip=LAYERSKIP,
        train_dataset=Dataset.from_dict({"messages": CHAT}),
        processing_class=chat_tokenizer(),
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"]),
    )
    reports = reports_of(trainer)
    assert reports[-1]["loss"] < reports[0]["loss"]
    trainer.save_model()
    fresh = tiny()
    fresh.load_state_dict(before)
    merged = PeftModel.from_pretrained(fresh, str(tmp_path)).merge_and_unload()
    changed = {
        name for name, tensor in merged.state_dict().items() if not tensor.equal(before[name])
    }
    assert changed
    assert all(any(part in name for part in ("q_proj", "v_proj", "down_proj")) for name in changed)


def prepared(directory, rows, name, **trainer):
    (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = write_recipe(
        directory,
        name,
        data={
            "train": {"files": [str(directory / f"{name}.jsonl")]},
            "validation": {"files": [str(directory / f"{name}.jsonl")]},
            "sequence_length": 64,
        },
        **trainer,
    )
    return path, built(path, TEMPLATE)


def trained_text(trainer) -> set[str]:
    """What each document's targets say."""
    decode, texts = trainer.processing_class.decode, set()
    for row in trainer.train_dataset:
        begin = 0
        for length in row["seq_lengths"]:
            labels = row["labels"][begin : begin + length]
            texts.add(decode([label for label in labels if label != IGNORED]))
            begin += length
    return texts


def test_a_recipe_trains_completions_only(directory):
    rows = [{"prompt": f"{n} + 1 =", "completion": f" {n + 1}"} for n in range(24)]
    path, trainer = prepared(directory, rows, "completions")
    assert trained_text(trainer) == {f" {n + 1}<|end|>" for n in range(24)}
    assert run(path)


def test_a_recipe_trains_the_assistants_turns(directory):
    rows = [{"messages": messages} for messages in CHAT]
    _, trainer = prepared(directory, rows, "assistant", assistant_only_loss=True)
    assert trained_text(trainer) == {f"{n + 1}.\n" for n in range(24)}
    _, trainer = prepared(directory, rows, "all turns")
    assert trained_text(trainer) == {f"user: {n} + 1?\nassistant: {n + 1}.\n" for n in range(24)}


SYSTEM = {"role": "system", "content": "Add."}
CHAT_PROMPTS = {f"user: {n} + 1?\nassistant: " for n in range(16)}


@pytest.mark.parametrize(
    ("rows", "trainer", "expected"),
    [
        ([{"messages": messages} for messages in CHAT], {}, CHAT_PROMPTS),
        (
            [{"messages": [SYSTEM, *messages, *messages]} for messages in CHAT],
            {"assistant_only_loss": True},
            {f"system: Add.\n{prompt}" for prompt in CHAT_PROMPTS},
        ),
        (
            [
                {
                    "conversations": [
                        {"from": "human", "value": f"{n} + 1?"},
                        {"from": "gpt", "value": f"{n + 1}."},
                    ]
                }
                for n in range(24)
            ],
            {},
            CHAT_PROMPTS,
        ),
        (
            [{"prompt": f"{n} + 1 =", "completion": f" {n + 1}"} for n in range(24)],
            {},
            {f"{n} + 1 =" for n in range(24)},
        ),
    ],
    ids=["chats", "the first answer", "ShareGPT", "completions"],
)
def test_an_evaluation_continues_where_the_answer_begins(directory, rows, trainer, expected):
    _, built_trainer = prepared(directory, rows, "held-out", **trainer)
    prompts = {built_trainer.processing_class.decode(ids) for ids in built_trainer._prompts}
    assert prompts <= expected
    assert len(prompts) >= min(16, len(built_trainer.eval_dataset))


def test_messages_need_a_chat_template(directory):
    path, _ = prepared(directory, [{"messages": messages} for messages in CHAT], "untemplated")
    recipe = load_recipe(path)
    tokenizer = load_tokenizer(recipe.model)
    model = load_model(recipe.model, tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"data.train: messages need a chat template, and the"):
        make_trainer(recipe, training_arguments(recipe), model, tokenizer)
