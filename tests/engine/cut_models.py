"""The reference for early exit: transformers' model, cut to its first layers."""

import torch

from tests.engine.engines import random_prompts
from tests.models import first_layers

PROMPTS = random_prompts([5, 17, 40, 90, 3, 20])
MAX_TOKENS = 40


def early_exit(num_layers: int) -> dict:
    return {"additional_config": {"layerskip": {"early_exit": num_layers}}}


@torch.inference_mode()
def transformers_outputs(path: str, num_layers: int, prompts=PROMPTS) -> list[list[int]]:
    """Greedy tokens of transformers' model of the first layers."""
    model = first_layers(path, num_layers)
    outputs = []
    for prompt in prompts:
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=MAX_TOKENS, do_sample=False)
        outputs.append(ids[0, len(prompt) :].tolist())
    return outputs
