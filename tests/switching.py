"""Engines of a server that switch exits at random, in processes that a test cannot look into."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

EVERYWHERE = Path(__file__).with_name("switching_everywhere")
"""Metadata of a plugin: vLLM calls `switch_at_random` where this folder is in the path."""


def environment() -> dict[str, str]:
    """Variables of a server whose engines are to switch."""
    folders = [os.environ.get("PYTHONPATH", ""), str(EVERYWHERE), str(EVERYWHERE.parent.parent)]
    return {"PYTHONPATH": os.pathsep.join(filter(None, folders))}


def switch_at_random() -> None:
    """Let each policy of this process choose exit, K and observing by chance."""
    from layerskip_vllm.scheduling.policy import Choice, DraftPolicy

    rng = random.Random(os.getpid())  # data-parallel engines choose differently

    def choose(policy: DraftPolicy, limits: Sequence[int]) -> Choice:
        exit_index = rng.randrange(len(policy.outcomes))
        return Choice(exit_index, rng.randint(0, max(limits, default=0)), rng.random() < 0.2)

    DraftPolicy.choose = choose
