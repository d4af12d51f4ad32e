"""Measures how fast the model decodes when it ends at exit E."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence

import torch
from transformers import PreTrainedModel

from layerskip_vllm.lens.exits import cut

NUM_ROUNDS = 8
NUM_TIMED_STEPS = 3
"""Timed steps of one exit per round, after one untimed step that reloads its weights into cache."""


class Decoding:
    """One request in greedy decoding with a KV cache, batch 1."""

    def __init__(self, model: PreTrainedModel, context: Sequence[int]):
        """Prefill the context.

        Args:
            model: The cut or whole model.
            context: Token ids to prefill.
        """
        self.model = model
        ids = torch.tensor([list(context)], device=model.device)
        output = model(ids, use_cache=True, logits_to_keep=1)
        self.cache = output.past_key_values
        self.next_ids = output.logits[:, -1].argmax(dim=-1, keepdim=True)  # [1, 1]

    def step(self) -> float:
        """Decode one token; returns seconds."""
        started = time.perf_counter()
        output = self.model(self.next_ids, past_key_values=self.cache, use_cache=True)
        self.next_ids = output.logits[:, -1].argmax(dim=-1, keepdim=True)
        self.next_ids.tolist()  # waits for an asynchronous device
        return time.perf_counter() - started


def measure_tokens_per_s(
    model: PreTrainedModel,
    exit_layers: Iterable[int],
    context: Sequence[int],
    num_rounds: int = NUM_ROUNDS,
) -> dict[int, float]:
    """Measure single-token decoding at batch 1, with transformers, at the model's dtype.

    Exits take turns, in reverse order every other round, so that a disturbance of the machine does
    not favour one exit. The first round is a warm-up.

    Args:
        model: The full model.
        exit_layers: Exits to measure; may include the full depth.
        context: Token ids that each exit prefills.
        num_rounds: Turns of each exit, at least 2.

    Returns:
        Exit layer -> tokens/s of the median step.
    """
    seconds: dict[int, list[float]] = {exit_layer: [] for exit_layer in exit_layers}
    with torch.inference_mode():
        decodings = [(steps, Decoding(cut(model, e), context)) for e, steps in seconds.items()]
        for round_index in range(num_rounds):
            for steps, decoding in decodings if round_index % 2 else reversed(decodings):
                decoding.step()
                timed = [decoding.step() for _ in range(NUM_TIMED_STEPS)]
                if round_index > 0:
                    steps.extend(timed)
    return {exit_layer: 1 / statistics.median(steps) for exit_layer, steps in seconds.items()}
