"""In which steps the exits that are not in use are observed."""

from __future__ import annotations

from layerskip_vllm.config import LayerSkipConfig

LEAST_SHARE, FIRST_SHARE = 1 / 128, 0.2
"""Of the time, what observing adds in steady text, and at the start or after a change."""

ROWS_TO_HALVE = 5
"""Observed tokens after which the share is half."""


class Observing:
    """Spends a share of the time on observing steps, by the layer-count model.

    A share of the time, not of the steps: an observing step costs little where nothing is drafted
    and no LM head is large, and a third of a cycle elsewhere. From a change on, the share falls
    with the tokens that were observed since, so 24 of them end it: one observing step of a large
    batch, eight of a single request. Changes within that time do not start it again, which bounds
    the share in any text.
    """

    def __init__(self, config: LayerSkipConfig) -> None:
        self._draft_layers = config.exit_draft_layers
        self._early_layers = [config.exit_layers[exit_.layer_index] for exit_ in config.exits]
        self._heads = sum(config.exit_head_layers)
        self._num_layers = config.num_layers + config.head_layers
        self._share = FIRST_SHARE
        self._saved = 0.0  # layers

    def is_due(self, exit_index: int, num_drafts: int) -> bool:
        """Whether the step before a cycle is to observe."""
        early = self._early_layers[exit_index] if num_drafts else 0
        cost = early + self._heads
        self._saved += self._share * (
            self._num_layers + num_drafts * self._draft_layers[exit_index]
        )
        if self._saved < cost:
            return False
        self._saved = min(self._saved - cost, cost)
        return True

    def observe(self, num_rows: int) -> None:
        """Add the tokens of an observing step."""
        self._share = max(LEAST_SHARE, self._share * 0.5 ** (num_rows / ROWS_TO_HALVE))

    def start_over(self) -> None:
        """Observe more for a while: the text has changed."""
        if self._share == LEAST_SHARE:
            self._share = FIRST_SHARE
