"""What a step's `SchedulerOutput` carries of drafts, from the scheduler to every worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from layerskip_vllm.scheduling.policy import Choice

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput

ATTRIBUTE = "layerskip"
"""Where a `SchedulerOutput` carries our part; it is pickled with the rest for every worker."""


class DraftOrder(NamedTuple):
    """What a step's `SchedulerOutput` carries of drafts beyond `num_spec_tokens_to_schedule`."""

    limits: Mapping[str, int]
    """Request id -> most drafts after the step, of requests that may have fewer than K."""
    num_drafts: int
    """K."""
    batch_size: int
    """Requests that decode after the step."""
    is_decode: bool
    """Whether these are all, and each had a step before."""
    exit_index: int = 0
    """Which of the configuration's exits drafts after the step."""
    observes: bool = False
    """Whether the step runs the full forward by segments, and counts for each exit how often it
    would have drafted the token that the step emits."""

    @property
    def choice(self) -> Choice:
        """What the policy chose for the step."""
        return Choice(self.exit_index, self.num_drafts, self.observes)


def attach(scheduler_output: SchedulerOutput, order: DraftOrder) -> None:
    """Let the output carry an order."""
    setattr(scheduler_output, ATTRIBUTE, order)


def draft_order_of(scheduler_output: SchedulerOutput) -> DraftOrder:
    """What our scheduler has attached; K for all on an output that another one made."""
    order = getattr(scheduler_output, ATTRIBUTE, None)
    return order or DraftOrder({}, scheduler_output.num_spec_tokens_to_schedule, 0, False)
