"""What an exit or a head promises by the layer-count model."""

from __future__ import annotations


def ideal_speedup(
    acceptance: float, draft_layers: float, num_layers: float, max_drafts: int
) -> float:
    """The best K's tokens per cycle over its cost of (K*E + L) / L full forwards.

    Args:
        acceptance: Chance of a draft whose predecessors were accepted, in [0, 1].
        draft_layers: E, what a draft costs in decoder layers.
        num_layers: L, what the full forward costs.
        max_drafts: The largest K.
    """
    num_tokens, best = 1.0, 1.0
    for num_drafts in range(1, max_drafts + 1):
        num_tokens += acceptance**num_drafts
        speedup = num_tokens * num_layers / (num_drafts * draft_layers + num_layers)
        # With one draft at least: where none pays, the exit that loses least is the best.
        best = speedup if num_drafts == 1 else max(best, speedup)
    return best
