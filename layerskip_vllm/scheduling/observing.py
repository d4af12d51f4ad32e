"""In which steps the exits that are not in use are observed."""

from __future__ import annotations

from layerskip_vllm.config import LayerSkipConfig

LEAST_SHARE, FIRST_SHARE = 1 / 128, 0.2
"""Of the time, what observing adds in steady text, and at the start or after a change."""

NO_GRAPH = 0.5
"""What a step without its CUDA graph adds, as a share of the forward."""

LEAST_COST = 1 / 16
"""Of a cycle: what observing takes beside the heads, and what it loses as a step to be timed."""

ROWS_TO_HALVE = 5
"""Observed tokens after which the share is half."""


class Observing:
    """Spends a share of the time on observing steps, by the layer-count model.

    A share of the time, not of the steps: an observing step costs the heads that read the states at
    the exits, and on graphs a forward without one where no drafts are verified. From a change on,
    the share falls with the tokens that were observed since, so 24 of them end it: one observing
    step of a large batch, eight of a single request. Changes within that time do not start it
    again, which bounds the share in any text. No two steps in a row observe: the time of such a
    step teaches nothing.
    """

    def __init__(self, config: LayerSkipConfig, has_graphs: bool) -> None:
        self._draft_layers = config.exit_draft_layers
        self._num_layers = config.num_layers + config.head_layers
        self._heads = sum(set(config.exit_head_layers))
        self._plain = self._heads + (has_graphs and NO_GRAPH * self._num_layers)
        self._share = FIRST_SHARE
        self._saved = 0.0  # layers
        self._is_due = False

    def is_due(self, exit_index: int, num_drafts: int) -> bool:
        """Whether the step before a cycle is to observe."""
        cycle = self._num_layers + num_drafts * self._draft_layers[exit_index]
        cost = max(self._heads if num_drafts else self._plain, LEAST_COST * cycle)
        self._saved += self._share * cycle
        self._is_due = self._saved >= cost and not self._is_due
        if self._is_due:
            self._saved = min(self._saved - cost, cost)
        return self._is_due

    def observe(self, num_rows: int) -> None:
        """Add the tokens of an observing step."""
        self._share = max(LEAST_SHARE, self._share * 0.5 ** (num_rows / ROWS_TO_HALVE))

    def start_over(self) -> None:
        """Observe more for a while: the text has changed."""
        if self._share == LEAST_SHARE:
            self._share = FIRST_SHARE
