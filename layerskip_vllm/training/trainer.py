"""LayerSkip on `transformers.Trainer` (section 4.1): trains exits and reports their figures."""

from __future__ import annotations

import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin, PartialState
from torch import nn
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from layerskip_vllm.training.curriculum import exit_weights
from layerskip_vllm.training.early_exit_loss import prepare_for_layerskip
from layerskip_vllm.training.layer_dropout import LayerDropout
from layerskip_vllm.training.recipe import LayerSkipSection


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


class LayerSkipTrainer(Trainer):
    """Trains with layer dropout and the early exit loss.

    Reports through the Trainer's channels, in addition to its own figures:
        loss_exit_E: mean cross entropy of exit E over the steps that trained it.
        agreement_exit_E: share of targets at which exit E's top-1 prediction equals the last
            layer's, in the reporting step; a proxy of the acceptance rate.
    Evaluation reports both for every exit; `eval_loss` is the last layer's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        layerskip: LayerSkipSection,
        **kwargs: object,
    ) -> None:
        prepare_for_layerskip(model)
        super().__init__(model, args, **kwargs)
        self.num_layers = model.config.num_hidden_layers
        self.e_scale = layerskip.e_scale
        self.curriculum = layerskip.build_curriculum()
        self.layer_dropout = LayerDropout(
            self.num_layers, layerskip.p_max, layerskip.dropout_schedule, args.seed
        )
        self._training_meter = ExitMeter(self.num_layers, args.device)
        self._evaluation_meter = ExitMeter(self.num_layers, args.device)
        self._micro_batch = (0, 0)  # (step, number of its micro-batches that are done)

    def create_accelerator_and_postprocess(self) -> None:
        """Enable FSDP on CPUs, where accelerate silently ignores it."""
        super().create_accelerator_and_postprocess()
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
        else:
            plan, meter = self._evaluation_plan(), self._evaluation_meter
        loss, outputs = super().compute_loss(
            model, {**inputs, **plan}, return_outputs=True, num_items_in_batch=num_items_in_batch
        )
        meter.add([*plan["exit_weights"]], plan["compared_exits"], outputs)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add each exit's figures to a training report."""
        if "loss" in logs:
            logs |= self._training_meter.take(self)
        super().log(logs, start_time)

    def evaluation_loop(
        self, *args: object, metric_key_prefix: str = "eval", **kwargs: object
    ) -> EvalLoopOutput:
        """Add each exit's figures to an evaluation."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        for name, value in self._evaluation_meter.take(self).items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        return output

    def _training_plan(self, num_rows: int) -> dict:
        step, num_steps = self.state.global_step, self.state.max_steps
        reports = (step + 1) % max(1, self.state.logging_steps) == 0
        return {
            "exit_weights": exit_weights(
                self.curriculum, step, num_steps, self.num_layers, self.e_scale
            ),
            "kept_rows": self.layer_dropout.kept_rows(
                step, num_steps, self._first_row(step), num_rows
            ),
            "compared_exits": list(range(1, self.num_layers)) if reports else [],
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
