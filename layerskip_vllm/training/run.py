"""Runs one training, from recipe to checkpoint; every rank runs the same code."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)
from trl import SFTConfig

from layerskip_vllm.checkpoint.settings import (
    MAX_EXIT_LAYERS,
    TOKEN_COUNTS_FILE,
    CheckpointSettings,
    write_settings,
)
from layerskip_vllm.training.card import write_card
from layerskip_vllm.training.checkpoints import finishing, last_whole_checkpoint
from layerskip_vllm.training.documents import (
    TRAIN,
    VALIDATION,
    expand,
    is_chat,
    is_text,
    load_documents,
    naming_bad_files,
    naming_key,
    sources_of,
)
from layerskip_vllm.training.recipe import ModelSection, Recipe
from layerskip_vllm.training.replayed import best_settings
from layerskip_vllm.training.trainer import LayerSkipTrainer

logger = logging.getLogger(__name__)


def train(recipe: Recipe, resume: bool = False) -> None:
    """Train and save.

    Args:
        recipe: The recipe.
        resume: Continue from the last checkpoint in the recipe's output_dir.

    Raises:
        ValueError: A value of the recipe does not fit the model, the data or transformers, or the
            output folder holds checkpoints and `resume` is false.
        InterruptedError: SIGTERM ended the run early, after `enable_jit_checkpoint` saved it.
    """
    args = training_arguments(recipe)
    checkpoint = _checkpoint(args, resume)
    sources = sources_of(recipe.data)
    for key, source in sources.items():
        with naming_key(key):
            expand(source.files or ())
    set_seed(args.seed)
    tokenizer = load_tokenizer(recipe.model)
    model = load_model(recipe.model, tokenizer)
    check_exit_layers(recipe, model.config.num_hidden_layers)
    _warn_of_other_tokens(tokenizer, model)
    with naming_bad_files(*sources.values()):  # streams are read in steps and evaluations
        trainer = make_trainer(recipe, args, model, tokenizer)
        trainer.train(resume_from_checkpoint=checkpoint)
        step, num_steps = trainer.state.global_step, trainer.state.max_steps
        if step < num_steps:  # what there is now is no final checkpoint
            raise InterruptedError(
                f"stopped after step {step} of {num_steps}: --resume continues from there"
            )
        if trainer.eval_dataset is not None:
            trainer.evaluate()
    trainer.save_state()
    token_counts = trainer.token_counts()
    with finishing(Path(args.output_dir), args.should_save) as folder:
        trainer.save_model(str(folder))
        if args.should_save:
            (folder / TOKEN_COUNTS_FILE).write_text(json.dumps(token_counts), encoding="utf-8")
            _complete(folder, recipe, trainer)


def make_trainer(
    recipe: Recipe,
    args: SFTConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> LayerSkipTrainer:
    """Load the documents; the trainer tokenizes and packs them."""
    section = recipe.data
    loaded = {}
    for key, source in sources_of(section).items():
        with naming_key(key), args.main_process_first():  # the host's others take its cache
            loaded[key] = load_documents(source, section.streaming)
        if is_chat(loaded[key]) and tokenizer.chat_template is None:
            raise ValueError(
                f"{key}: messages need a chat template, and the tokenizer {tokenizer.name_or_path} "
                "has none: train a chat model, or give prompt and completion, or text"
            )
    documents, validation = loaded[TRAIN], loaded.get(VALIDATION)
    plain_text = is_text(documents)
    if section.streaming:
        # Without an end: the Trainer can resume within one pass, but not within the second.
        documents = documents.repeat(None).shuffle(args.seed, buffer_size=section.shuffle_buffer)
    trainer = LayerSkipTrainer(
        model,
        args,
        layerskip=recipe.layerskip,
        sequence_length=section.sequence_length,
        split_documents=plain_text,
        beginning_of_text=section.beginning_of_text if plain_text else "auto",
        train_dataset=documents,
        eval_dataset=validation,
        processing_class=tokenizer,
    )
    if validation is not None and section.max_validation_rows is not None:
        trainer.eval_dataset = trainer.eval_dataset.take(section.max_validation_rows)
    return trainer


def training_arguments(recipe: Recipe) -> SFTConfig:
    """Build the trainer's arguments, with the defaults of `TrainingArguments`, not TRL's.

    Raises:
        ValueError: transformers or TRL refuses a value, or one process sees several GPUs.
    """
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(TrainingArguments)
        if field.init and field.default is not dataclasses.MISSING
    }
    ours = {
        # Without an accelerator the Trainer allows bf16 only if this is set.
        "use_cpu": not torch.accelerator.is_available(),
        # Every parameter has a gradient in every step (see `_Skipped`), so DDP can skip the search.
        "ddp_find_unused_parameters": False,
        "max_length": None,  # the sequence length, at which rows are packed
    }
    args = SFTConfig(**(defaults | ours | recipe.training_arguments))
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
    key, name = "model.tokenizer", section.tokenizer
    if name is None:
        key, name = "model.path", section.path
    with naming_key(f"{key}={name!r}"):
        tokenizer = AutoTokenizer.from_pretrained(name)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {name} has no eos_token")
    return tokenizer


def load_model(section: ModelSection, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Load the checkpoint, or make a model with random weights, in float32.

    Raises:
        ValueError: `config` holds a key that the model type does not have, or the tokenizer does
            not fit the model.
    """
    if section.path is not None:
        with naming_key(f"model.path={section.path!r}"):
            model = AutoModelForCausalLM.from_pretrained(section.path, dtype=torch.float32)
        check_tokens(tokenizer, model.get_input_embeddings().weight.shape[0])
        return model
    config = dict(section.config or {})
    model_type = config.pop("model_type", "llama")
    known = AutoConfig.for_model(model_type).to_dict()
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise ValueError(
            f"model.config: {', '.join(unknown)}: unknown to model_type {model_type!r}"
        )
    config.setdefault("vocab_size", len(tokenizer))
    check_tokens(tokenizer, int(str(config["vocab_size"])))
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        config.setdefault(name, getattr(tokenizer, name))
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config))


def check_tokens(tokenizer: PreTrainedTokenizerBase, num_rows: int) -> None:
    """Check the tokenizer against the number of the embedding's rows.

    Raises:
        ValueError: It has tokens, special ones perhaps, for which the embedding has no row.
    """
    last = max([*tokenizer.get_vocab().values(), *_special_tokens(tokenizer).values()])
    if last >= num_rows:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path} has tokens up to {last}, but the model's "
            f"embedding has {num_rows} rows: give the model's own tokenizer, or resize the "
            "embedding first"
        )


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    found = {name: getattr(tokenizer, name) for name in names}
    return {name: token_id for name, token_id in found.items() if token_id is not None}


def _warn_of_other_tokens(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    for name, token_id in _special_tokens(tokenizer).items():
        known = getattr(model.config, name, None)
        known = known if isinstance(known, list) else [known]
        if known != [None] and token_id not in known:
            logger.warning("%s: %s in config.json, %d of the tokenizer", name, known, token_id)


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


def _checkpoint(args: SFTConfig, resume: bool) -> str | None:
    last = last_whole_checkpoint(Path(args.output_dir))
    if resume and last is None:
        raise ValueError(f"--resume: {args.output_dir} holds no checkpoint to continue from")
    if last is not None and not resume:
        raise ValueError(
            f"{args.output_dir} holds {last.name}: continue from it with --resume, or "
            "choose another trainer.output_dir"
        )
    return None if last is None else str(last)


def _complete(directory: Path, recipe: Recipe, trainer: LayerSkipTrainer) -> None:
    """Give the saved checkpoint its dtype and the key `layerskip`."""
    if recipe.model.save_dtype is not None:
        _cast(directory, recipe.model.save_dtype)
    lens, exit_layers = trainer.lens, recipe.layerskip.exit_layers
    if trainer.is_fsdp_enabled and trainer.eval_dataset is not None:  # in pieces until it is saved
        saved = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        lens = trainer.replay(saved)
    # None removes what the checkpoint that was continued from knew of its own exits.
    settings = None
    if lens is not None:
        settings = best_settings(lens, exit_layers)
    elif early := sorted(e for e in exit_layers or () if e < trainer.num_layers):
        settings = CheckpointSettings(tuple(early[:MAX_EXIT_LAYERS]))
    write_settings(directory, settings)
    write_card(directory, recipe, trainer.state.log_history, trainer.num_layers, lens, settings)


def _cast(directory: Path, dtype: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
    model.save_pretrained(directory)
