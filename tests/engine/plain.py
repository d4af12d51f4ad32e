"""Outputs of plain decoding, computed once per test run and shared by its processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from filelock import FileLock
from vllm.lora.request import LoRARequest
from vllm.sampling_params import SamplingParams

directory: Path | None = None
"""Where this run keeps outputs, set by tests/engine/conftest.py; None keeps nothing."""


def kept(compute: Callable[[], list[list[int]]], model: str, *settings) -> list[list[int]]:
    """Return the kept token ids for a model's files and some settings, or compute them."""
    if directory is None:
        return compute()
    key = hashlib.sha256(_digest_of_files(model))
    key.update(repr(_comparable(settings)).encode())
    path = directory / f"{key.hexdigest()}.json"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            path.write_text(json.dumps(compute()))
        return json.loads(path.read_text())


def _digest_of_files(folder: str) -> bytes:
    digest = hashlib.sha256()
    for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        digest.update(str(file.relative_to(folder)).encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.digest()


def _comparable(value: object) -> object:
    """Convert a value so that equal values have the same `repr` in every process."""
    if isinstance(value, dict):
        return sorted((repr(key), _comparable(inner)) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return [_comparable(inner) for inner in value]
    if isinstance(value, torch.Tensor):
        return hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest(), value.shape
    if isinstance(value, LoRARequest):
        return _digest_of_files(value.lora_path)
    if isinstance(value, SamplingParams):
        return _comparable(msgspec.structs.asdict(value))
    return value
