"""The recipe's `trainer` section: transformers' and TRL's arguments, checked when read."""

from __future__ import annotations

import dataclasses

from pydantic import ConfigDict, Field, create_model, model_validator
from trl import SFTConfig

RANGES: dict[str, dict[str, float]] = {
    "adam_beta1": {"ge": 0, "lt": 1},
    "adam_beta2": {"ge": 0, "lt": 1},
    "adam_epsilon": {"gt": 0},
    "eval_steps": {"gt": 0},
    "gradient_accumulation_steps": {"ge": 1},
    "learning_rate": {"gt": 0},
    "logging_steps": {"gt": 0},
    "max_grad_norm": {"ge": 0},
    "num_train_epochs": {"gt": 0},
    "per_device_eval_batch_size": {"ge": 1},
    "per_device_train_batch_size": {"ge": 1},
    "save_steps": {"gt": 0},
    "save_total_limit": {"ge": 1},
    "seed": {"ge": 0},
    "warmup_steps": {"ge": 0},
    "weight_decay": {"ge": 0},
}
"""Ranges that transformers does not check: a bad value would fail late or train nonsense."""

UNSUPPORTED = {
    "dataset_text_field": "use data.train.text_column",
    "deepspeed": "use fsdp",
    "eval_packing": "rows are always packed",
    "label_smoothing_factor": "the early exit loss has none",
    "loss_type": "the early exit loss is the cross entropy",
    "max_length": "use data.sequence_length",
    "packing": "rows are always packed",
    "packing_strategy": "text is split, conversations are cut off",
    "padding_free": "rows are always packed",
    "torch_compile": "exits and dropped samples, and so the graph, change from step to step",
}


TYPES = {"fsdp": bool | str}
"""Types of arguments whose annotation in transformers fits only its command line."""


def _field(argument: dataclasses.Field) -> tuple:
    type_ = TYPES.get(argument.name, argument.type)
    return type_, Field(None, **RANGES.get(argument.name, {}))  # type: ignore[call-overload]


_FIELDS = create_model(  # type: ignore[call-overload]
    "_FIELDS",
    __config__=ConfigDict(extra="forbid", frozen=True, strict=True),
    **{
        argument.name: _field(argument)
        for argument in dataclasses.fields(SFTConfig)
        if argument.init
    },
)


class TrainerSection(_FIELDS):  # type: ignore[misc, valid-type]
    """One typed field per training argument; only given ones reach the Trainer."""

    output_dir: str = Field(min_length=1)

    @model_validator(mode="after")
    def _is_supported(self) -> TrainerSection:
        for key in sorted(self.model_fields_set & set(UNSUPPORTED)):
            if value := getattr(self, key):
                raise ValueError(f"{key}={value!r} is not supported: {UNSUPPORTED[key]}")
        return self
