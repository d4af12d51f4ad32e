"""Runs one training, from recipe to checkpoint; every rank runs the same code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from layerskip_vllm.checkpoint.settings import write_settings
from layerskip_vllm.training.data import Rows, expand, load_rows
from layerskip_vllm.training.exits import known_settings
from layerskip_vllm.training.recipe import DataSection, ModelSection, Recipe
from layerskip_vllm.training.trainer import LayerSkipTrainer


def train(recipe: Recipe, resume: bool = False) -> None:
    """Train and save.

    Args:
        recipe: The recipe.
        resume: Continue from the last checkpoint in the recipe's output_dir.

    Raises:
        ValueError: A value of the recipe does not fit the model, the data or transformers, or the
            output folder holds checkpoints and `resume` is false.
    """
    args = training_arguments(recipe)
    checkpoint = _checkpoint(args, resume)
    for source in filter(None, (recipe.data.train, recipe.data.validation)):
        expand(source.files or ())
    set_seed(args.seed)
    tokenizer = load_tokenizer(recipe.model)
    model = load_model(recipe.model, tokenizer)
    check_exit_layers(recipe, model.config.num_hidden_layers)
    with args.main_process_first():  # one rank per host tokenizes, the others read its cache
        rows, validation_rows = load_data(recipe.data, tokenizer, args.seed)
    trainer = LayerSkipTrainer(
        model,
        args,
        layerskip=recipe.layerskip,
        train_dataset=rows,
        eval_dataset=validation_rows,
        processing_class=tokenizer,
        data_collator=default_data_collator,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trainer.evaluate() if validation_rows is not None else {}
    trainer.save_state()
    trainer.save_model()
    if args.should_save:
        _complete(args.output_dir, recipe, metrics, model.config.num_hidden_layers)


def load_data(
    section: DataSection, tokenizer: PreTrainedTokenizerBase, seed: int
) -> tuple[Rows, Rows | None]:
    """Load the training rows, and the validation rows if the recipe names some."""
    rows = load_rows(section.train, section, tokenizer)
    if section.streaming:
        rows = rows.shuffle(seed=seed, buffer_size=section.shuffle_buffer)
    if section.validation is None:
        return rows, None
    validation_rows = load_rows(section.validation, section, tokenizer)
    if section.max_validation_rows is not None:
        validation_rows = validation_rows.take(section.max_validation_rows)
    return rows, validation_rows


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """Build the Trainer's arguments.

    Raises:
        ValueError: transformers refuses a value, or one process sees several GPUs.
    """
    defaults = {
        # Without an accelerator the Trainer allows bf16 only if this is set.
        "use_cpu": not torch.accelerator.is_available(),
        # Every parameter has a gradient in every step (see `_Skipped`), so DDP can skip the search.
        "ddp_find_unused_parameters": False,
    }
    args = TrainingArguments(**{**defaults, **recipe.training_arguments})
    if args.n_gpu > 1:
        raise ValueError(
            f"{args.n_gpu} GPUs are visible to one process: start one process per GPU with "
            "torchrun or --ray-workers, or set CUDA_VISIBLE_DEVICES"
        )
    return args


def load_tokenizer(section: ModelSection) -> PreTrainedTokenizerBase:
    """Load the tokenizer, whose end-of-text token separates documents.

    Raises:
        ValueError: It has no such token.
    """
    tokenizer = AutoTokenizer.from_pretrained(section.tokenizer or section.path)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {section.tokenizer or section.path} has no eos_token")
    return tokenizer


def load_model(section: ModelSection, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Load the checkpoint, or make a model with random weights, in float32.

    Raises:
        ValueError: `config` holds a key that the model type does not have.
    """
    if section.path is not None:
        return AutoModelForCausalLM.from_pretrained(section.path, dtype=torch.float32)
    config = dict(section.config or {})
    model_type = config.pop("model_type", "llama")
    known = AutoConfig.for_model(model_type).to_dict()
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise ValueError(
            f"model.config: {', '.join(unknown)}: unknown to model_type {model_type!r}"
        )
    config.setdefault("vocab_size", len(tokenizer))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        config.setdefault(name, getattr(tokenizer, name))
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config))


def check_exit_layers(recipe: Recipe, num_layers: int) -> None:
    """Check the exits against the model's depth.

    Raises:
        ValueError: An exit of a fixed curriculum, or the rotation, is out of range.
    """
    for exit_layer in recipe.layerskip.exit_layers or ():
        if exit_layer >= num_layers:
            raise ValueError(
                f"layerskip.exit_layers: exit_layer={exit_layer} must be in [1, {num_layers - 1}] "
                f"for a {num_layers}-layer model"
            )
    rotation = recipe.layerskip.rotation
    if rotation is not None and rotation >= num_layers:
        raise ValueError(
            f"layerskip.rotation={rotation} must be in [1, {num_layers - 1}] for a "
            f"{num_layers}-layer model: some steps would train no exit"
        )


def _checkpoint(args: TrainingArguments, resume: bool) -> str | None:
    last = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    if resume and last is None:
        raise ValueError(f"--resume: {args.output_dir} holds no checkpoint to continue from")
    if last is not None and not resume:
        raise ValueError(
            f"{args.output_dir} holds {Path(last).name}: continue from it with --resume, or "
            "choose another trainer.output_dir"
        )
    return last


def _complete(
    directory: str, recipe: Recipe, metrics: Mapping[str, float], num_layers: int
) -> None:
    """Give the saved checkpoint its dtype and the key `layerskip`."""
    if recipe.model.save_dtype is not None:
        _cast(directory, recipe.model.save_dtype)
    # None removes what the checkpoint that was continued from knew of its own exits.
    settings = known_settings(recipe.layerskip.exit_layers, metrics, num_layers)
    write_settings(Path(directory), settings)


def _cast(directory: str, dtype: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
    model.save_pretrained(directory)
