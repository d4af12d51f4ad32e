"""One warning where drafting costs more than it yields."""

from __future__ import annotations

import logging

from layerskip_vllm.config import LayerSkipConfig

logger = logging.getLogger(f"vllm.{__name__}")

MIN_DRAFTED = 1000
"""Drafted tokens after which the acceptance rate is judged, once."""


class AcceptanceMonitor:
    """Counts drafts, and warns once if the acceptance rate is below break-even."""

    def __init__(self, config: LayerSkipConfig) -> None:
        self._config = config
        self.num_drafted = 0
        self.num_accepted = 0
        self._judged = False

    @property
    def acceptance_rate(self) -> float:
        """Accepted / drafted so far; 0 before the first draft."""
        return self.num_accepted / max(self.num_drafted, 1)

    def observe(self, num_drafted: int, num_accepted: int) -> None:
        """Add one step's verified drafts, and how many of them were accepted."""
        self.num_drafted += num_drafted
        self.num_accepted += num_accepted
        if self._judged or self.num_drafted < MIN_DRAFTED:
            return
        self._judged = True
        break_even = self._config.break_even_acceptance_rate
        if self.acceptance_rate < break_even:
            logger.warning(
                "LayerSkip: acceptance rate %.1f%% after %d drafted tokens is below break-even, "
                "%.1f%% for %s of %d layers: %s (the output is right all the same). Use a "
                "checkpoint trained for early exit, try another exit layer, or serve without "
                "%s",
                100 * self.acceptance_rate,
                self.num_drafted,
                100 * break_even,
                self._config.model,
                self._config.num_layers,
                "little is drafted, and little gained"
                if self._config.adaptive
                else "this speculation costs more than it yields",
                self._config.model,
            )
