"""Reads documents from files and datasets, in the forms that TRL knows: text or messages."""

from __future__ import annotations

import glob
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import fsspec
import pyarrow
from datasets import (
    Dataset,
    DatasetDict,
    IterableDataset,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError

from layerskip_vllm.training.recipe import DataSection, DataSource

logger = logging.getLogger(__name__)

Documents: TypeAlias = Dataset | IterableDataset

SAVED_TO_DISK = ("state.json", "dataset_dict.json")
"""Files that `save_to_disk` writes, for a dataset and for one with splits."""

BUILDERS: dict[str, tuple[str, dict[str, str]]] = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), ("json", {})),
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".parquet": ("parquet", {}),
    ".arrow": ("arrow", {}),
}
"""Extension -> builder of `datasets` and its arguments; other files are text, one document each."""

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4")

TEXT, MESSAGES, PROMPT_COMPLETION = ("text",), ("messages",), ("prompt", "completion")
"""Columns of the forms."""

TRAIN, VALIDATION = "data.train", "data.validation"
"""Keys of a recipe."""

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
"""Its messages have `from` and `value` instead of `role` and `content`."""

READ_ERRORS = (DatasetGenerationError, pyarrow.ArrowException, UnicodeDecodeError, EOFError)
"""What `datasets` raises where a file is not what its name says."""


def sources_of(section: DataSection) -> dict[str, DataSource]:
    """A recipe's sources, by their keys TRAIN and VALIDATION."""
    sources = {TRAIN: section.train, VALIDATION: section.validation}
    return {key: source for key, source in sources.items() if source is not None}


@contextmanager
def naming_key(key: str) -> Iterator[None]:
    """Put a recipe's key before the message of what the block raises.

    Raises:
        ValueError: In the place of a ValueError or an OSError.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"{key}: {error}") from error


def load_documents(source: DataSource, streaming: bool) -> Documents:
    """Open one source, and keep the columns of its form.

    Documents without text are left out, with their number; of a stream with a warning at the first.

    Returns:
        Documents with the columns of TEXT, MESSAGES or PROMPT_COMPLETION.

    Raises:
        ValueError: A file, dataset, split or column does not exist, or it cannot be read.
    """
    with naming_bad_files(source):
        parts = [_formed(part, source) for part in _open(source, streaming)]
    forms = {tuple(sorted(_columns(part))) for part in parts}
    if len(forms) > 1:
        found = "; ".join(", ".join(form) for form in sorted(forms))
        raise ValueError(f"files of different forms cannot be mixed: {found}")
    documents = parts[0] if len(parts) == 1 else concatenate_datasets(parts)
    return _with_text(documents, source)


def is_text(documents: Documents) -> bool:
    """Whether the documents are plain text, not messages or prompts."""
    return tuple(_columns(documents)) == TEXT


def is_chat(documents: Documents) -> bool:
    """Whether the documents are messages."""
    return tuple(_columns(documents)) == MESSAGES


@contextmanager
def naming_bad_files(*sources: DataSource) -> Iterator[None]:
    """Turn what `datasets` raises in the block into one line that names file and row.

    Raises:
        ValueError: In the place of one of READ_ERRORS.
    """
    try:
        yield
    except READ_ERRORS as error:
        reason = _bad_row([path for source in sources for path in expand(source.files or ())])
        names = " or ".join(map(_name, sources))
        raise ValueError(reason or f"{names} cannot be read: {_root(error)}") from None


def expand(patterns: Sequence[str]) -> list[str]:
    """Return the files that match glob patterns.

    Raises:
        ValueError: A pattern matches no file.
    """
    paths = []
    for pattern in patterns:
        found = sorted(path for path in glob.glob(pattern, recursive=True) if Path(path).is_file())
        if not found:
            where = "" if Path(pattern).is_absolute() else f" in {Path.cwd()}"
            raise ValueError(f"files: {pattern!r} matches no file{where}")
        paths += found
    return paths


def _open(source: DataSource, streaming: bool) -> list[Documents]:
    if source.files is not None:
        return _open_files(expand(source.files), streaming)
    name = str(source.dataset)
    try:
        if any((Path(name) / marker).exists() for marker in SAVED_TO_DISK):
            saved = load_from_disk(name)
            saved = saved[source.split] if isinstance(saved, DatasetDict) else saved
            return [saved.to_iterable_dataset() if streaming else saved]
        return [load_dataset(name, source.name, split=source.split, streaming=streaming)]
    except READ_ERRORS:
        raise
    except Exception as error:  # datasets raises many types
        raise ValueError(f"dataset={name!r} cannot be loaded: {error}") from error


def _open_files(paths: Sequence[str], streaming: bool) -> list[Documents]:
    """Open files by their extensions, those of one kind together."""
    filled = [path for path in paths if Path(path).stat().st_size]
    if len(filled) < len(paths):
        logger.warning("%d of %d files are empty", len(paths) - len(filled), len(paths))
    if not filled:
        raise ValueError(f"all files are empty: {', '.join(paths[:5])}")
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[str]] = {}
    for path in filled:
        builder, arguments = _builder(path)
        groups.setdefault((builder, tuple(arguments.items())), []).append(path)
    return [
        _load(builder, files, streaming, dict(arguments))
        for (builder, arguments), files in groups.items()
    ]


def _load(
    builder: str, files: Sequence[str], streaming: bool, arguments: Mapping[str, str]
) -> Documents:
    try:
        return load_dataset(
            builder, data_files=list(files), split="train", streaming=streaming, **arguments
        )
    except ValueError as error:
        if "corresponds to no data" not in str(error):  # as of a table that has only a header
            raise
        raise ValueError(f"files={list(files)[:5]} hold no document") from None


def _builder(path: str) -> tuple[str, dict[str, str]]:
    extensions = [extension.lower() for extension in Path(path).suffixes]
    while extensions and extensions[-1] in COMPRESSED:
        extensions.pop()
    if extensions and extensions[-1] in BUILDERS:
        return BUILDERS[extensions[-1]]
    with fsspec.open(path, "rb", compression="infer") as file:
        start = file.read(1 << 12)
    if b"\0" in start:
        known = ", ".join(BUILDERS)
        raise ValueError(f"{path} is neither text nor one of {known}, compressed or not")
    return "text", {"sample_by": "document"}


def _formed(documents: Documents, source: DataSource) -> Documents:
    """Keep the columns of the form, under TRL's names."""
    columns = _columns(documents)
    chats = next((name for name in ("messages", "conversations") if name in columns), None)
    if chats and _is_sharegpt(next((row[chats] for row in documents if row[chats]), None)):
        documents = documents.map(_as_messages, remove_columns=[chats])
    elif chats == "conversations":
        documents = documents.rename_column(chats, "messages")
    columns = ["messages"] if chats else columns
    given = source.text_column if "text_column" in source.model_fields_set else None
    for form in (MESSAGES, PROMPT_COMPLETION):
        if given is None and set(form) <= set(columns):
            return documents.select_columns(list(form))
    if not columns:
        raise ValueError(f"{_name(source)} holds no document")
    if source.text_column not in columns:
        raise ValueError(
            f"text_column={source.text_column!r} is not in the data; it has: {', '.join(columns)}"
        )
    documents = documents.select_columns([source.text_column])
    if source.text_column != "text":
        documents = documents.rename_column(source.text_column, "text")
    if documents.features is not None and documents.features["text"] == Value("large_string"):
        documents = documents.cast_column("text", Value("string"))
    return documents


def _with_text(documents: Documents, source: DataSource) -> Documents:
    columns = _columns(documents)
    _warn_of_gaps.cache_clear()
    is_stream = isinstance(documents, IterableDataset)
    kept = documents.filter(_has_text, fn_kwargs={"columns": columns, "warns": is_stream})
    with naming_bad_files(source):
        if next(iter(kept), None) is None:
            raise ValueError(f"{_name(source)} holds no document")
    if isinstance(documents, Dataset) and len(kept) < len(documents):
        missing = len(documents) - len(kept)
        logger.warning("%d of %d documents have no text", missing, len(documents))
    return kept


def _is_sharegpt(messages: object) -> bool:
    first = messages[0] if isinstance(messages, list) and messages else None
    return isinstance(first, Mapping) and {"from", "value"} <= set(first)


def _as_messages(document: Mapping[str, Any]) -> dict[str, list[dict[str, str]]]:
    messages = [
        {"role": SHAREGPT_ROLES.get(turn["from"], turn["from"]), "content": turn["value"]}
        for turn in document.get("messages") or document.get("conversations") or ()
    ]
    return {"messages": messages}


# Not a closure: datasets derives its cache's name from the pickled function.
def _has_text(document: Mapping[str, Any], columns: Sequence[str], warns: bool) -> bool:
    last = document[columns[-1]]
    if last is not None and columns != list(MESSAGES) and not isinstance(last, str | list):
        raise ValueError(f"a document must be text, not {type(last).__name__}: {last!r}")
    has_text = bool(last) and all(document[column] is not None for column in columns)
    if warns and not has_text:
        _warn_of_gaps()
    return has_text


@cache
def _warn_of_gaps() -> None:
    logger.warning("the stream has documents without text, which are left out")


def _columns(documents: Documents) -> list[str]:
    return list(documents.column_names or next(iter(documents), {}))


def _bad_row(paths: Sequence[str]) -> str | None:
    """Name the first row of JSON Lines that is not JSON."""
    for path in paths:
        if _builder(path)[0] != "json":
            continue
        row = 0
        try:
            with fsspec.open(path, "rt", compression="infer", encoding="utf-8") as file:
                for line in file:
                    row += 1
                    if line.strip():
                        json.loads(line)
        except (ValueError, EOFError, OSError) as error:
            return f"{path}: row {max(1, row)} cannot be read: {error}"
    return None


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)


def _name(source: DataSource) -> str:
    return f"files={source.files}" if source.files else f"dataset={source.dataset!r}"
