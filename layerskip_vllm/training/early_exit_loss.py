"""Computes the early exit loss, through the shared norm and LM head (LayerSkip, section 4.1.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MethodType

import torch
from torch.nn import LinearCrossEntropyOptions
from torch.nn.functional import linear, linear_cross_entropy, pad
from transformers import PreTrainedModel

from layerskip_vllm.training.layer_dropout import KeptRows, install_layer_dropout
from layerskip_vllm.training.logits import logit_scale

IGNORED = -100
"""Label of a token that is not a target, as in transformers."""

LOGITS_PER_CHUNK = 1 << 24
"""Logits in memory at once when predictions are compared: 64 MiB in float32."""

CHUNKED = LinearCrossEntropyOptions(acc_policy="accurate")
"""Chunks of logits, accumulated in float32: twice as fast as `auto` in bfloat16 on CPU."""


def prepare_for_layerskip(model: PreTrainedModel) -> None:
    """Replace the forward of a transformers model by the training forward of LayerSkip.

    The model must be built like Llama: `model.model` with `layers` and `norm`, and an `lm_head`
    without bias. Class, parameters and their names do not change. The forward of this instance
    does, because DDP, FSDP and accelerate hook into it.

    Raises:
        ValueError: The model is not built like Llama, or its own loss is another one.
    """
    decoder, head = getattr(model, "model", None), getattr(model, "lm_head", None)
    layers, norm = getattr(decoder, "layers", None), getattr(decoder, "norm", None)
    if None in (layers, norm, head) or getattr(head, "bias", None) is not None:
        raise ValueError(
            f"{type(model).__name__} is not built like Llama: LayerSkip training needs "
            "model.layers, model.norm and an lm_head without bias"
        )
    model.layerskip_logit_scale = logit_scale(model)
    install_layer_dropout(layers)
    model.forward = MethodType(_forward, model)
    model.accepts_loss_kwargs = True


def _forward(
    self: PreTrainedModel,
    input_ids: torch.Tensor,  # [num_rows, num_tokens], int64
    labels: torch.Tensor,  # [num_rows, num_tokens], int64; IGNORED: not a target
    exit_weights: Mapping[int, float],
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,  # [num_rows, num_tokens]; 0 starts a document
    kept_rows: KeptRows | None = None,
    num_items_in_batch: torch.Tensor | int | None = None,
    compared_exits: Sequence[int] = (),
    **kwargs: object,
) -> dict[str, torch.Tensor]:
    """Return the loss over the exits in `exit_weights`: E -> weight, ascending, L last.

    Further arguments go to the decoder, such as the lengths of packed documents.

    Returns:
        loss: Scalar, sum over exits of weight * cross entropy, averaged over `num_items_in_batch`
            tokens; None: over the batch's targets. 0 without targets.
        exit_losses: [num_exits], float32: each exit's summed cross entropy, unweighted, detached.
        num_targets: Scalar, the number of targets.
        num_agreeing: [len(compared_exits)], int64: targets at which the exit's top-1 prediction
            equals the last exit's.
    """
    num_layers = len(self.model.layers)
    early_exits = sorted({*exit_weights, *compared_exits} - {num_layers})
    output = self.model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        use_cache=False,
        # transformers counts layers here, without the embedding.
        output_hidden_states=[exit_ - 1 for exit_ in early_exits],
        kept_rows=kept_rows,
        **kwargs,
    )
    states = {exit_: self.model.norm(output.hidden_states[exit_ - 1]) for exit_ in early_exits}
    states[num_layers] = output.last_hidden_state
    if self.layerskip_logit_scale != 1.0:
        states = {exit_: self.layerskip_logit_scale * state for exit_, state in states.items()}
    targets = pad(labels, (0, 1), value=IGNORED)[:, 1:].flatten()
    head = self.lm_head.weight
    token_losses = _token_losses([states[exit_] for exit_ in exit_weights], head, targets)
    weights = torch.tensor(list(exit_weights.values()), device=token_losses.device)
    exit_losses = token_losses.sum(1)  # [num_exits]
    is_target = targets != IGNORED
    num_targets = is_target.sum()
    num_items = num_targets if num_items_in_batch is None else num_items_in_batch
    return {
        # Documents of one token and padding have no targets: 0, not 0 / 0.
        "loss": weights @ exit_losses / torch.as_tensor(num_items).clamp(min=1),
        "exit_losses": exit_losses.detach(),
        "num_targets": num_targets,
        "num_agreeing": _num_agreeing(
            [states[exit_].flatten(0, 1)[is_target] for exit_ in compared_exits],
            states[num_layers].flatten(0, 1)[is_target],
            head,
        ),
    }


def _token_losses(
    states: Sequence[torch.Tensor],  # num_exits of [num_rows, num_tokens, hidden_size]
    head: torch.Tensor,  # [vocab_size, hidden_size]
    targets: torch.Tensor,  # [num_rows * num_tokens], int64
) -> torch.Tensor:
    """Return each exit's cross entropy of each token, [num_exits, num_rows * num_tokens], float32.

    One call takes all exits, so that backward accumulates one gradient of the LM head; a call per
    exit would hold one gradient each. The operator computes logits in chunks, forward and backward.
    """
    stacked = torch.stack(list(states)).view(-1, head.shape[1])
    if torch.is_autocast_enabled(stacked.device.type):
        dtype = torch.get_autocast_dtype(stacked.device.type)
        stacked, head = stacked.to(dtype), head.to(dtype)
    losses = linear_cross_entropy(
        stacked,
        head,
        targets.repeat(len(states)),
        reduction="none",
        ignore_index=IGNORED,
        options=CHUNKED,
    )
    return losses.view(len(states), -1).float()


@torch.no_grad()
def _num_agreeing(
    states: Sequence[torch.Tensor],  # of [num_targets, hidden_size] each
    last_state: torch.Tensor,  # [num_targets, hidden_size]
    head: torch.Tensor,  # [vocab_size, hidden_size]
) -> torch.Tensor:
    """Count the targets at which each exit's top-1 equals the last exit's, [len(states)]."""
    predictions = _predict(last_state, head) if states else None
    agreeing = [(_predict(state, head) == predictions).sum() for state in states]
    return torch.stack(agreeing) if agreeing else torch.zeros(0, dtype=torch.int64)


def _predict(state: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
    chunk = max(1, LOGITS_PER_CHUNK // len(head))
    return torch.cat([linear(some, head).argmax(-1) for some in state.split(chunk)])
