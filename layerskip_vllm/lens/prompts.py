"""Reads the lens's prompts from the command line and from a JSON Lines file."""

from __future__ import annotations

import json
from pathlib import Path

PROMPT_KEYS = ("prompt", "text")


def read_prompts(
    texts: list[str] | None, file: Path | None, num_prompts: int | None = None
) -> list[str]:
    """Return the prompts of the command line, then those of the file.

    Args:
        texts: Prompts of the command line.
        file: JSON Lines: each line an object with a string at "prompt" or "text", or a bare
            string. Empty lines are skipped.
        num_prompts: Return only the first so many; None: all.

    Raises:
        ValueError: A prompt is empty, a line holds none, or there is none at all. Names the file
            and the line.
        OSError: The file cannot be read.
    """
    if num_prompts is not None and num_prompts < 1:
        raise ValueError(f"--num-prompts={num_prompts} must be at least 1")
    prompts = list(texts or [])
    if "" in prompts:
        raise ValueError("--prompt is empty; the lens needs text")
    if file is not None:
        prompts += _read_file(file)
    if not prompts:
        raise ValueError("no prompt: give --prompt TEXT or --file prompts.jsonl")
    return prompts[:num_prompts]


def _read_file(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text: {error}") from error
    prompts = [
        _read_line(line, f"{file}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not prompts:
        raise ValueError(f"{file}: holds no prompt")
    return prompts


def _read_line(line: str, where: str) -> str:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    if isinstance(value, dict):
        key = next((key for key in PROMPT_KEYS if key in value), None)
        if key is None:
            raise ValueError(
                f"{where}: the object has neither {' nor '.join(map(repr, PROMPT_KEYS))}, "
                f"only {', '.join(map(repr, value)) or 'nothing'}"
            )
        value, where = value[key], f"{where}, {key!r}"
    if not isinstance(value, str):
        raise ValueError(f"{where}: expected a string, not {json.dumps(value)[:60]}")
    if not value:
        raise ValueError(f"{where}: the prompt is empty")
    return value
