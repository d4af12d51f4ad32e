"""One model's run: start the systems, measure them in turns, close them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import groups
from benchmarks.child import Child, children
from benchmarks.models import PreparedModel
from benchmarks.rounds import REFERENCE, Group, Schedule, Start, measure
from benchmarks.systems import FIXED_K, System

logger = logging.getLogger(__name__)

TIMED_STARTS = (REFERENCE, "self-default", "draft_model")


@dataclass(frozen=True)
class Run:
    """The measurements, and the settings of the child processes.

    Attributes:
        model: The model.
        systems: All systems, the reference first.
        schedule: The measurements and their counts.
        env: Environment of the child processes.
        log_dir: For their output.
    """

    model: PreparedModel
    systems: Mapping[str, System]
    schedule: Schedule
    env: Mapping[str, str]
    log_dir: Path

    def measure_starts(self, num_starts: int) -> dict[str, list[Start]]:
        """Start and close the systems of TIMED_STARTS in turn, `num_starts` times.

        An extra first round fills the page cache and the compile cache; it is not measured.
        """
        names = [name for name in TIMED_STARTS if name in self.systems]
        starts: dict[str, list[Start]] = {name: [] for name in names}
        for index in range(num_starts + 1 if num_starts else 0):
            logger.info("%s: start %d of %d", self.model.name, index, num_starts)
            for name in names:
                log = self.log_dir / f"{name}-start{index}.log"
                child = Child(self.systems[name], self.env, log)
                child.close()
                if index > 0:
                    starts[name].append(Start.of(child))
        return starts

    def measure_groups(self, names: Sequence[Sequence[str]]) -> list[Group]:
        """Run one group after another."""
        return [
            self.measure_group(members, earlier={name for group in names[:i] for name in group})
            for i, members in enumerate(names)
        ]

    def group_names(self) -> list[list[str]]:
        """Groups of systems that run together, as many as fit in memory."""
        return groups.split(
            {name: groups.child_bytes(self.model, self.systems[name]) for name in self.systems},
            groups.available_bytes() - groups.RESERVE_BYTES,
            in_every_group=[REFERENCE, FIXED_K],
        )

    def measure_group(self, names: Sequence[str], earlier: Collection[str]) -> Group:
        """Run all rounds of one group.

        Args:
            names: Its systems.
            earlier: Systems of earlier groups. They run only for comparison; t(M) and step
                breakdowns are not measured again.
        """
        logger.info("%s: starting %s", self.model.name, ", ".join(names))
        systems = {name: self.systems[name] for name in names}
        schedule = replace(
            self.schedule,
            row_counts=() if REFERENCE in earlier else self.schedule.row_counts,
            with_breakdown=[
                n for n in names if n in self.schedule.with_breakdown and n not in earlier
            ],
        )
        with children(systems, self.env, self.log_dir) as started:
            return measure(self.model, systems, started, schedule)
