"""The key `layerskip` of a checkpoint's `config.json`: good exits, K and acceptance.

`layerskip-vllm train` and `layerskip-vllm sweep --save` write it. transformers and vLLM keep an
unknown key of `config.json` as an attribute of the configuration and do not use it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from layerskip_vllm.config import MAX_NUM_SPECULATIVE_TOKENS

CONFIG_FILE = "config.json"

TOKEN_COUNTS_FILE = "token_counts.json"
"""Beside CONFIG_FILE: {"token id": count, ...} of the training text."""

SETTINGS_KEY = "layerskip"
"""Our key in `config.json`."""

MAX_EXIT_LAYERS = 3
"""Most exits that a writer names or a reader takes: each cut of the forward is one more compiled
segment."""

MIN_DISTANCE = 8
"""They are at least L / 8 layers apart: neighbours cost and accept alike."""


@dataclass(frozen=True)
class CheckpointSettings:
    """What training or a measurement found out about a checkpoint.

    Attributes:
        exit_layers: Good values of E, the best first; at least one, each once.
        num_speculative_tokens: The best K at the first exit. None: not measured.
        acceptance_rate: One per exit: accepted / drafted at K = 1. At any K it is the chance of a
            draft whose predecessors in the cycle were accepted. None: not measured.
        draft_vocab_size: The best size of the draft vocabulary. None: the whole vocabulary, or
            not measured.
    """

    exit_layers: tuple[int, ...]
    num_speculative_tokens: int | None = None
    acceptance_rate: tuple[float, ...] | None = None
    draft_vocab_size: int | None = None

    def to_json(self) -> dict[str, object]:
        """The value of the key; unknown settings are left out."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if value is not None
        }


def distinct_exits(ranked: Iterable[int], num_layers: int) -> tuple[int, ...]:
    """Choose the exits to name: the best ones that are not neighbours.

    Args:
        ranked: E, the best first.
        num_layers: L.
    """
    chosen: list[int] = []
    for exit_layer in ranked:
        if all(abs(exit_layer - e) * MIN_DISTANCE >= num_layers for e in chosen):
            chosen.append(exit_layer)
    return tuple(chosen[:MAX_EXIT_LAYERS])


def parse_settings(value: object, num_layers: int | None, source: str) -> CheckpointSettings:
    """Check the value of the key; keys inside it that a later release may add are ignored.

    Args:
        value: As in `config.json`, or the attribute `layerskip` of a loaded configuration.
        num_layers: L of the checkpoint. None: unknown, so exits have no upper bound.
        source: The file, for errors.

    Raises:
        ValueError: Names file, key, value and range.
    """
    where = f"{source}: {SETTINGS_KEY}"
    if not isinstance(value, Mapping):
        raise ValueError(f'{where}={value!r} must be an object such as {{"exit_layers": [8]}}')
    exit_layers = _exit_layers(value.get("exit_layers"), num_layers, where)
    return CheckpointSettings(
        exit_layers=exit_layers,
        num_speculative_tokens=_whole_number(
            value, "num_speculative_tokens", MAX_NUM_SPECULATIVE_TOKENS, where
        ),
        acceptance_rate=_rates(value.get("acceptance_rate"), len(exit_layers), where),
        draft_vocab_size=_whole_number(value, "draft_vocab_size", None, where),
    )


def read_settings(folder: Path) -> CheckpointSettings | None:
    """Read a checkpoint's settings; None if its `config.json` has no such key.

    Raises:
        ValueError: `config.json` is not a JSON object, or a setting is bad.
        OSError: It cannot be read.
    """
    file = folder / CONFIG_FILE
    config = read_config(file)
    if SETTINGS_KEY not in config:
        return None
    return parse_settings(config[SETTINGS_KEY], _num_layers(config), str(file))


def write_settings(folder: Path, settings: CheckpointSettings | None) -> None:
    """Set the key in a checkpoint's `config.json`; None removes it.

    The file is replaced in one step, so that a reader or a crash never meets half of it. All other
    keys keep their order and values.

    Raises:
        ValueError: `config.json` is not a JSON object, or the settings do not fit the checkpoint.
        OSError: It cannot be read or written.
    """
    file = folder / CONFIG_FILE
    config = read_config(file)
    if settings is None:
        if config.pop(SETTINGS_KEY, None) is None:
            return
    else:
        value = settings.to_json()
        parse_settings(value, _num_layers(config), str(file))
        config[SETTINGS_KEY] = value
    _replace(file, config)


def _replace(file: Path, config: Mapping[str, object]) -> None:
    text = file.read_text(encoding="utf-8")
    new_text = json.dumps(config, indent=2, ensure_ascii=text.isascii())
    # mkstemp makes a file that only its owner can read.
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(new_text + ("\n" if text.endswith("\n") else ""))
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, file.stat().st_mode & 0o777)
        os.replace(temporary, file)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_config(file: Path) -> dict[str, object]:
    """Read a `config.json`.

    Raises:
        ValueError: It is not a JSON object.
        OSError: It cannot be read.
    """
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} must hold a JSON object, not {type(config).__name__}")
    return config


def _num_layers(config: Mapping[str, object]) -> int | None:
    """L, which a model of several modalities keeps in `text_config`."""
    text_config = config.get("text_config")
    for section in (config, text_config if isinstance(text_config, Mapping) else {}):
        num_layers = section.get("num_hidden_layers")
        if isinstance(num_layers, int):
            return num_layers
    return None


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _exit_layers(value: object, num_layers: int | None, where: str) -> tuple[int, ...]:
    last = None if num_layers is None else num_layers - 1
    allowed = "at least 1" if last is None else f"in [1, {last}]"
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or not value
        or not all(_is_whole(e) and e >= 1 and (last is None or e <= last) for e in value)
        or len(set(value)) < len(value)
    ):
        raise ValueError(
            f"{where}.exit_layers={value!r} must be a list of different whole numbers {allowed}, "
            "the best exit first"
        )
    return tuple(value)


def _whole_number(
    settings: Mapping[str, object], key: str, most: int | None, where: str
) -> int | None:
    value = settings.get(key)
    if value is None:
        return None
    if not _is_whole(value) or value < 1 or (most is not None and value > most):  # type: ignore[operator]
        allowed = "of at least 1" if most is None else f"in [1, {most}]"
        raise ValueError(f"{where}.{key}={value!r} must be a whole number {allowed}")
    return value  # type: ignore[return-value]


def _rates(value: object, num_exits: int, where: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    if (
        not isinstance(value, Sequence)
        or isinstance(value, str)
        or len(value) != num_exits
        or not all(
            isinstance(rate, int | float) and not isinstance(rate, bool) and 0 <= rate <= 1
            for rate in value
        )
    ):
        raise ValueError(
            f"{where}.acceptance_rate={value!r} must be a list of {num_exits} numbers in [0, 1], "
            "one per exit layer"
        )
    return tuple(float(rate) for rate in value)
