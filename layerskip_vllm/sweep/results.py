"""The results file: one JSON object per line, appended as soon as it is measured."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from layerskip_vllm.measure.decoding import DraftCounts
from layerskip_vllm.sweep.plan import EngineSetup, Turn

SUBJECT_KEY = "sweep"
FIRST_LINE = f'{{"{SUBJECT_KEY}": '


@dataclass(frozen=True)
class Measurement:
    """One turn and what it gave.

    Attributes:
        turn: What was measured.
        tokens_per_s: Output tokens per second at full concurrency, prefill apart.
        plain_tokens_per_s: Of plain vLLM in the same round, run and batch size.
        drafts: Counted over the turn.
        device: What it ran on.
        draft_vocab_counts: Hash of the counts that ranked the draft vocabulary; None where the
            tokenizer's merges did, and for the whole vocabulary.
    """

    turn: Turn
    tokens_per_s: float
    plain_tokens_per_s: float
    drafts: DraftCounts
    device: str
    draft_vocab_counts: str | None = None

    @property
    def speedup(self) -> float:
        """Over plain vLLM; 1 in plain turns."""
        return self.tokens_per_s / self.plain_tokens_per_s

    def to_json(self) -> dict[str, object]:
        """A line of the file."""
        turn = self.turn
        return {
            "round": turn.round_index,
            "exit_layer": turn.setup.exit_layer,
            "draft_vocab_size": turn.setup.draft_vocab_size,
            "num_speculative_tokens": turn.num_speculative_tokens,
            "batch_size": turn.batch_size,
            "tokens_per_s": self.tokens_per_s,
            "plain_tokens_per_s": self.plain_tokens_per_s,
            **asdict(self.drafts),
            "device": self.device,
            "draft_vocab_counts": self.draft_vocab_counts,
        }

    @classmethod
    def from_json(cls, line: Mapping) -> Measurement:
        """Read a line of the file; raises KeyError and TypeError where it is not one."""
        setup = EngineSetup(line["exit_layer"], line["draft_vocab_size"])
        turn = Turn(line["round"], setup, line["num_speculative_tokens"], line["batch_size"])
        counts = {name: line[name] for name in asdict(DraftCounts())}
        speeds = float(line["tokens_per_s"]), float(line["plain_tokens_per_s"])
        return cls(turn, *speeds, DraftCounts(**counts), line["device"], line["draft_vocab_counts"])


class ResultsFile:
    """An open results file, which no other sweep can open.

    Its first line says what all others belong to: model, prompts, versions and so on.

    Attributes:
        measurements: Those in the file, and those that were added.
    """

    def __init__(self, path: Path, subject: Mapping[str, object]) -> None:
        """Open the file, or start it.

        Args:
            path: The file.
            subject: Must equal that of an existing file.

        Raises:
            ValueError: The file is of another subject, is no results file, or another sweep is
                writing it.
            OSError: It cannot be read or written.
        """
        self.path = path
        self.measurements: list[Measurement] = []
        self._file: IO[str] = path.open("a+", encoding="utf-8")
        try:
            self._lock()
            self._read(subject)
        except BaseException:
            self._file.close()
            raise

    def add(self, measurement: Measurement) -> None:
        """Append a measurement; it is on the disk when this returns."""
        self._append(measurement.to_json())
        self.measurements.append(measurement)

    def check_device(self, device: str) -> None:
        """Refuse to mix the figures of two machines.

        Raises:
            ValueError: The file holds measurements of another device.
        """
        others = {entry.device for entry in self.measurements} - {device}
        if others:
            raise ValueError(
                f"{self.path} was measured on {', '.join(sorted(others))}, and this is {device}: "
                "give another --output"
            )

    def check_counts(self, draft_vocab_counts: str | None) -> None:
        """Refuse to mix draft vocabularies of one size that hold different tokens.

        Raises:
            ValueError: The file holds measurements of a draft vocabulary with other counts.
        """
        measured = {
            entry.draft_vocab_counts
            for entry in self.measurements
            if entry.turn.setup.draft_vocab_size is not None
        }
        if measured - {draft_vocab_counts}:
            raise ValueError(
                f"{self.path} holds draft vocabularies with other --draft-vocab-counts: "
                "give another --output"
            )

    def close(self) -> None:
        """Let other sweeps open it."""
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another sweep is writing {self.path}: wait for its end") from None

    def _read(self, subject: Mapping[str, object]) -> None:
        self._file.seek(0)
        text = self._file.read()
        whole, newline, torn = text.rpartition("\n")
        lines = whole.split("\n") if whole else []
        if lines:
            self._check_subject(self._parse(lines[0], 1).get(SUBJECT_KEY), subject)
        elif not torn.startswith(FIRST_LINE[: len(torn)]):
            self._check_subject(None, subject)
        for number, line in enumerate(lines[1:], start=2):
            try:
                self.measurements.append(Measurement.from_json(self._parse(line, number)))
            except (KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.path}, line {number}: not a measurement of this release "
                    f"({error!r}): give another --output"
                ) from None
        if torn:  # the process was killed while it wrote this line
            self._file.truncate(len((whole + newline).encode()))
        if not lines:
            self._append({SUBJECT_KEY: dict(subject)})

    def _parse(self, line: str, number: int) -> Mapping:
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.path}, line {number}: not JSON: {error}") from None
        if not isinstance(value, dict):
            raise ValueError(f"{self.path}, line {number}: expected an object")
        return value

    def _check_subject(self, there: object, here: Mapping[str, object]) -> None:
        if not isinstance(there, dict):
            raise ValueError(f"{self.path} is not a results file of a sweep: give another --output")
        differing = [
            f"{key} was {there.get(key)!r} and is {here.get(key)!r}"
            for key in dict.fromkeys([*there, *here])
            if there.get(key) != here.get(key)
        ]
        if differing:
            raise ValueError(
                f"{self.path} belongs to another sweep ({'; '.join(differing)}): "
                "give another --output"
            )

    def _append(self, line: Mapping[str, object]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
