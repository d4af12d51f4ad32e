"""The trainer of `layerskip-vllm train`: LayerSkip on TRL's, with packed rows."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import torch
from datasets import Dataset, IterableDataset
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTConfig, SFTTrainer

from layerskip_vllm.lens.lens import Lens
from layerskip_vllm.training.documents import is_chat
from layerskip_vllm.training.early_exit_loss import IGNORED
from layerskip_vllm.training.mixin import LayerSkipMixin
from layerskip_vllm.training.packing import PackedRows, pack, set_beginning
from layerskip_vllm.training.replayed import (
    acceptance_report,
    chat_prompts,
    held_out_prompts,
    replay_prompts,
)


class LayerSkipTrainer(LayerSkipMixin, SFTTrainer):
    """The recipe's trainer: TRL's, with documents in packed rows, each row a sample for dropout.

    TRL itself flattens packed rows into one, and packs 1,000 documents at a time, which fills only
    some rows with short documents.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: SFTConfig,
        *,
        sequence_length: int,
        split_documents: bool,
        beginning_of_text: Literal["auto", "always", "never"] = "auto",
        processing_class: PreTrainedTokenizerBase,
        **kwargs: Any,
    ) -> None:
        """Tokenize, pack and build the trainer.

        Args:
            model: Built like Llama.
            args: TRL's; without packing and maximum length, which are the next two.
            sequence_length: Tokens of a row.
            split_documents: Whether a longer document continues in another row.
            beginning_of_text: Whether a document begins with BOS; auto: as the tokenizer does.
            processing_class: The tokenizer.
            kwargs: Of `LayerSkipMixin`.

        Raises:
            ValueError: The model cannot be trained for early exit, or uses FlashAttention.
        """
        attention = str(model.config._attn_implementation)
        if "flash" in attention:
            raise ValueError(
                f"attn_implementation={attention!r}: transformers would mix the documents of a "
                "packed row where a batch has several rows; use 'sdpa'"
            )
        self._held_out: Any = kwargs.get("eval_dataset")
        self._sequence_length, self._split_documents = sequence_length, split_documents
        self._beginning_of_text = beginning_of_text
        self.lens: Lens | None = None
        """Of the last evaluation."""
        self._token_counts = torch.zeros(len(processing_class) + 1, dtype=torch.int64)
        self._bos = processing_class.bos_token_id
        pad_token_id = processing_class.pad_token_id
        if pad_token_id is None:
            pad_token_id = processing_class.eos_token_id
        super().__init__(
            model,
            args,
            data_collator=PackedRows(pad_token_id),
            processing_class=processing_class,
            **kwargs,
        )

    def training_step(self, model: nn.Module, inputs: dict, *args: object) -> torch.Tensor:
        """Count the tokens: a draft vocabulary takes the most frequent ones."""
        labels = inputs["labels"].flatten()
        self._token_counts = self._token_counts.to(labels.device)
        # Labels that are no targets count beyond the last token, which needs no wait for a GPU.
        tokens = torch.where(labels == IGNORED, len(self._token_counts) - 1, labels)
        self._token_counts.scatter_add_(0, tokens, torch.ones_like(tokens))
        return super().training_step(model, inputs, *args)

    def token_counts(self) -> dict[int, int]:
        """Token id -> how often it was a target since the start or the last resumption."""
        counts = self.accelerator.reduce(self._token_counts.to(self.args.device)).tolist()
        return {token_id: count for token_id, count in enumerate(counts[:-1]) if count}

    def evaluation_loop(
        self, *args: object, metric_key_prefix: str = "eval", **kwargs: object
    ) -> EvalLoopOutput:
        """Add the acceptance length of each exit, by replay of held-out prompts.

        FSDP's parameters are in pieces, with which no text is generated. Nor is vLLM's drafting
        known for models with a factor of their logits.
        """
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        model = self.accelerator.unwrap_model(self.model)
        if not self.is_fsdp_enabled and model.layerskip_logit_scale == 1.0:
            self.lens = self.replay(model)
            for name, value in acceptance_report(self.lens).items():
                output.metrics[f"{metric_key_prefix}_{name}"] = value
        return output

    def replay(self, model: PreTrainedModel) -> Lens:
        """Every exit's predictions on the held-out prompts by `model`: ours, or ours as saved."""
        return replay_prompts(model, self._prompts, self.processing_class.eos_token_id)

    @cached_property
    def _prompts(self) -> list[list[int]]:
        """The same in every evaluation; a stream would be read and packed anew for each."""
        prompts = []
        if is_chat(self._held_out):
            prompts = chat_prompts(self._held_out, self.processing_class, self._sequence_length)
        return prompts or held_out_prompts(self.eval_dataset)

    def _prepare_dataset(
        self, dataset: Dataset | IterableDataset, *args: object
    ) -> Dataset | IterableDataset:
        """Let TRL tokenize and label, then pack."""
        documents = super()._prepare_dataset(dataset, *args)
        if self._beginning_of_text != "auto":
            documents = documents.map(
                set_beginning,
                fn_kwargs={"bos": self._bos, "wanted": self._beginning_of_text == "always"},
            )
        return pack(documents, self._sequence_length, self._split_documents)

    def _save_checkpoint(self, *args: object, **kwargs: object) -> None:
        """Save, and say what to do where the disk is full.

        Raises:
            OSError: It could not be written; what has been is not taken for a checkpoint.
        """
        try:
            super()._save_checkpoint(*args, **kwargs)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise OSError(
                f"checkpoint-{self.state.global_step} cannot be saved in {self.args.output_dir}: "
                f"{error}. --resume continues from the last whole checkpoint"
            ) from error

    def create_model_card(self, *_args: object, **_kwargs: object) -> None:
        """Make none of TRL's, which would describe plain fine-tuning."""

    def _send_telemetry(self) -> None:
        """Send none: TRL reports architecture, hardware and source of the data to its makers."""
