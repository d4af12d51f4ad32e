"""LayerSkip on the trainers of transformers and TRL (section 4.1): trains and reports exits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin, PartialState
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import EvalLoopOutput

from layerskip_vllm.training.curriculum import exit_weights
from layerskip_vllm.training.early_exit_loss import prepare_for_layerskip
from layerskip_vllm.training.layer_dropout import LayerDropout
from layerskip_vllm.training.recipe import LayerSkipSection

REPORTED_TOKENS = 512
"""Of the last micro-batch, in whole rows: a report reads them through the LM head of every exit."""


class ExitMeter:
    """Sums each exit's loss and agreement since the last report; index E - 1."""

    def __init__(self, num_layers: int, device: torch.device) -> None:
        self._sums = torch.zeros(4, num_layers, dtype=torch.float64, device=device)

    def add(
        self, exits: list[int], compared_exits: list[int], outputs: dict[str, torch.Tensor]
    ) -> None:
        """Add the outputs of the training forward on a micro-batch."""
        trained, compared = ([exit_ - 1 for exit_ in some] for some in (exits, compared_exits))
        losses, num_targets, agreeing, num_compared = self._sums
        losses[trained] += outputs["exit_losses"].double()
        num_targets[trained] += outputs["num_targets"]
        agreeing[compared] += outputs["num_agreeing"].double()
        num_compared[compared] += outputs["num_targets"]

    def take(self, trainer: Trainer) -> dict[str, float]:
        """Return the means over all ranks since the last call, and reset."""
        losses, num_targets, agreeing, num_compared = trainer.accelerator.reduce(
            self._sums
        ).tolist()
        self._sums.zero_()
        report = {}
        for name, totals, counts in (
            ("loss", losses, num_targets),
            ("agreement", agreeing, num_compared),
        ):
            for index, (total, count) in enumerate(zip(totals, counts, strict=True)):
                if count:
                    report[f"{name}_exit_{index + 1}"] = total / count
        return report


class LayerSkipMixin:
    """Adds layer dropout and the early exit loss to `Trainer` or `SFTTrainer`: put it before them.

    Reports through the trainer's channels, in addition to its own figures, of every exit E:
        loss_exit_E: mean cross entropy over the steps that trained it since the last report; of an
            exit that none trained, in the last micro-batch.
        agreement_exit_E: share of targets at which its top-1 prediction equals the last layer's, in
            the first 512 tokens of the last micro-batch; a proxy of the acceptance rate.
    Evaluation reports both over all its targets; `eval_loss` is the last layer's.
    """

    loss_is_scaled_for_ga = True

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """What the trainer has."""

    def __init__(
        self,
        model: PreTrainedModel,
        args: object = None,
        *other: Any,
        layerskip: LayerSkipSection,
        **kwargs: Any,
    ) -> None:
        """Build the trainer, then replace its model's forward.

        Args:
            model: Built like Llama; may be a PEFT model of one.
            args: The trainer's.
            other: The trainer's.
            layerskip: Dropout, curriculum and loss weights.
            kwargs: The trainer's.

        Raises:
            ValueError: The model cannot be trained for early exit.
        """
        super().__init__(model, args, *other, **kwargs)  # type: ignore[call-arg]
        base = self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model
        prepare_for_layerskip(base)
        self.model_accepts_loss_kwargs = True
        self.num_layers = base.config.num_hidden_layers
        self.e_scale = layerskip.e_scale
        self.curriculum = layerskip.build_curriculum()
        self.layer_dropout = LayerDropout(
            self.num_layers, layerskip.p_max, layerskip.dropout_schedule, self.args.seed
        )
        self._training_meter = ExitMeter(self.num_layers, self.args.device)
        self._evaluation_meter = ExitMeter(self.num_layers, self.args.device)
        self._micro_batch = (0, 0)  # (step, number of its micro-batches that are done)
        self._last_inputs: dict[str, torch.Tensor] = {}

    def create_accelerator_and_postprocess(self) -> None:
        """Enable FSDP on CPUs, where accelerate silently ignores it."""
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        state, plugin_args = self.accelerator.state, self.args.fsdp_plugin_args
        if plugin_args is not None and state.distributed_type == DistributedType.MULTI_CPU:
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**plugin_args)
            state.distributed_type = DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.is_fsdp_enabled = True

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the loss with the exits and the dropped layers of this step."""
        if model.training:
            plan, meter = self._training_plan(len(inputs["input_ids"])), self._training_meter
            self._last_inputs = inputs
        else:
            plan, meter = self._evaluation_plan(), self._evaluation_meter
        outputs = model(**inputs, **plan, num_items_in_batch=num_items_in_batch)
        meter.add([*plan["exit_weights"]], plan["compared_exits"], outputs)
        loss = outputs["loss"]
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # The items are those of all ranks, over which DDP averages the gradients.
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add each exit's figures to a training report."""
        if "loss" in logs:
            logs |= self._exits_of_last_inputs() | self._training_meter.take(self)
        super().log(logs, start_time)  # type: ignore[misc]

    @torch.no_grad()
    def _exits_of_last_inputs(self) -> dict[str, float]:
        """Evaluate every exit: which step ends in a report is only known after it."""
        meter, plan = ExitMeter(self.num_layers, self.args.device), self._evaluation_plan()
        num_tokens = self._last_inputs["input_ids"].shape[1]
        rows = slice(max(1, REPORTED_TOKENS // num_tokens))
        inputs = {
            name: value[rows] if isinstance(value, torch.Tensor) and value.dim() > 1 else value
            for name, value in self._last_inputs.items()
        }
        self.model_wrapped.eval()
        with self.compute_loss_context_manager():
            outputs = self.model_wrapped(**inputs, **plan)
        self.model_wrapped.train()
        meter.add([*plan["exit_weights"]], plan["compared_exits"], outputs)
        return meter.take(self)

    def evaluation_loop(
        self, *args: object, metric_key_prefix: str = "eval", **kwargs: object
    ) -> EvalLoopOutput:
        """Add each exit's figures to an evaluation."""
        base: Any = super()
        output = base.evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        figures = self._evaluation_meter.take(self)
        if last := figures.get(f"loss_exit_{self.num_layers}"):
            figures["loss"] = last  # the Trainer's is a mean over batches, with and without targets
        for name, value in figures.items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        return output

    def _training_plan(self, num_rows: int) -> dict:
        step, num_steps = self.state.global_step, self.state.max_steps
        return {
            "exit_weights": exit_weights(
                self.curriculum, step, num_steps, self.num_layers, self.e_scale
            ),
            "kept_rows": self.layer_dropout.kept_rows(
                step, num_steps, self._first_row(step), num_rows
            ),
            "compared_exits": [],
        }

    def _evaluation_plan(self) -> dict:
        early_exits = list(range(1, self.num_layers))
        return {
            "exit_weights": {**dict.fromkeys(early_exits, 0.0), self.num_layers: 1.0},
            "kept_rows": None,
            "compared_exits": early_exits,
        }

    def _first_row(self, step: int) -> int:
        """Return the place of this micro-batch's first sample in the step's global batch.

        accelerate deals batches to the ranks in turn. So one process with as large a batch as all
        ranks together sees the same samples in the same places.
        """
        last_step, num_done = self._micro_batch
        num_done = num_done if last_step == step else 0
        self._micro_batch = (step, num_done + 1)
        batch = num_done * self.args.world_size + self.args.process_index
        return batch * self._train_batch_size
