"""The results file: one JSON object per line, written as soon as it is measured."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.auto_vs_fixed.plan import Contender, Turn

SUBJECT, FINISHED = "subject", "finished"


@dataclass(frozen=True)
class Measurement:
    """A contender's figures of a turn.

    Attributes:
        turn: The turn.
        contender: Who decoded.
        num_tokens: Of full steps, in which every request decodes and none ends.
        seconds: Of these steps.
        num_drafted: Drafted tokens of all steps.
        num_accepted: Accepted ones among them.
        choices: "E,K" -> how many steps `self:auto` chose it, with "observed" beside them.
    """

    turn: Turn
    contender: Contender
    num_tokens: int
    seconds: float
    num_drafted: int = 0
    num_accepted: int = 0
    choices: Mapping[str, int] = field(default_factory=dict)

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second at full concurrency, prefill apart."""
        return self.num_tokens / self.seconds

    @classmethod
    def from_json(cls, line: Mapping) -> Measurement:
        """Read a line of the file."""
        named = {**line, "turn": Turn(*line["turn"]), "contender": Contender(*line["contender"])}
        return cls(**named)


class Results:
    """An open results file; an interrupted stage starts again.

    Attributes:
        measurements: Of the file, and those added since.
    """

    def __init__(self, path: Path, subject: Mapping[str, object]) -> None:
        """Open the file, or start it.

        Args:
            path: The file.
            subject: Must equal that of an existing file.

        Raises:
            ValueError: The file is of another subject.
        """
        self._path = path
        self._subject = json.loads(json.dumps(subject))
        self.measurements: list[Measurement] = []
        self._finished: set[tuple[int, str]] = set()
        if path.exists():
            self._read()
        self._rewrite()

    def is_finished(self, batch_size: int, stage: str) -> bool:
        """Whether a stage needs no measuring."""
        return (batch_size, stage) in self._finished

    def add(self, measurement: Measurement) -> None:
        """Append a measurement."""
        self.measurements.append(measurement)
        self._append(asdict(measurement))

    def finish(self, batch_size: int, stage: str) -> None:
        """Note that a stage is complete."""
        self._finished.add((batch_size, stage))
        self._append({FINISHED: [batch_size, stage]})

    def of(self, batch_size: int, stage: str) -> list[Measurement]:
        """One stage's measurements, without the turns that warm up."""
        return [
            measurement
            for measurement in self.measurements
            if measurement.turn[:2] == (batch_size, stage) and measurement.turn.number >= 0
        ]

    def _read(self) -> None:
        first, *lines = self._parsed(self._path.read_text(encoding="utf-8").splitlines())
        if first.get(SUBJECT) != self._subject:
            raise ValueError(
                f"{self._path} holds {first.get(SUBJECT)}, and this is {self._subject}: "
                "give another --output"
            )
        self._finished = {tuple(line[FINISHED]) for line in lines if FINISHED in line}
        found = [Measurement.from_json(line) for line in lines if FINISHED not in line]
        self.measurements = [each for each in found if each.turn[:2] in self._finished]

    def _parsed(self, lines: Iterable[str]) -> list[dict]:
        parsed = []
        for line in lines:
            try:
                parsed.append(json.loads(line))
            except json.JSONDecodeError:  # the process was killed while it wrote the last line
                break
        return parsed or [{}]

    def _rewrite(self) -> None:
        """Keep complete stages only."""
        lines: list[dict] = [{SUBJECT: self._subject}]
        lines += [asdict(measurement) for measurement in self.measurements]
        lines += [{FINISHED: list(stage)} for stage in sorted(self._finished)]
        temporary = self._path.with_suffix(".part")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        os.replace(temporary, self._path)

    def _append(self, line: Mapping[str, object]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
