"""Packs documents into rows of equal length; attention stays inside a document."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TypeAlias

from datasets import Dataset, DatasetDict, IterableDataset, load_dataset, load_from_disk
from transformers import PreTrainedTokenizerBase

from layerskip_vllm.training.early_exit_loss import IGNORED
from layerskip_vllm.training.recipe import DataSection, DataSource

Rows: TypeAlias = Dataset | IterableDataset

DOCUMENTS_PER_PACKING = 256
"""Documents packed together; the last row of each group is padded."""


SAVED_TO_DISK = ("state.json", "dataset_dict.json")
"""Files that `save_to_disk` writes, for a dataset and for one with splits."""


def load_rows(source: DataSource, section: DataSection, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """Read, tokenize and pack one source.

    Returns:
        Rows of `section.sequence_length` int64 each: input_ids, labels, position_ids.

    Raises:
        ValueError: A file, dataset, split or column does not exist.
    """
    documents = _load_documents(source, section.streaming)
    columns = documents.column_names or list(next(iter(documents)))
    if source.text_column not in columns:
        raise ValueError(
            f"text_column={source.text_column!r} is not in the data; it has: {', '.join(columns)}"
        )

    return documents.map(
        _tokenize_and_pack,
        batched=True,
        batch_size=DOCUMENTS_PER_PACKING,
        remove_columns=columns,
        fn_kwargs={
            "text_column": source.text_column,
            "tokenizer": tokenizer,
            "sequence_length": section.sequence_length,
        },
    )


# Not a closure: datasets derives its cache's name from the pickled function.
def _tokenize_and_pack(
    batch: Mapping[str, list[str]],
    text_column: str,
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int,
) -> dict[str, list[list[int]]]:
    token_ids = tokenizer(batch[text_column], add_special_tokens=False)["input_ids"]
    return pack(token_ids, sequence_length, tokenizer.eos_token_id)


def pack(
    documents: Sequence[Sequence[int]], sequence_length: int, eos_token_id: int
) -> dict[str, list[list[int]]]:
    """Lay documents end to end in rows, each followed by `eos_token_id`.

    Positions restart at 0 in each document: so transformers recognises packed rows and keeps
    attention inside a document. The first token of a document is not a target, because another
    document precedes it. A document that crosses a row's end continues in the next row at position
    0. End-of-text tokens, which are not targets, fill the last row.

    Returns:
        input_ids, labels (`IGNORED` at tokens that are not targets) and position_ids, each a list
        of rows of `sequence_length`.
    """
    input_ids, labels, position_ids = [], [], []
    for document in filter(None, documents):
        input_ids.append([*document, eos_token_id])
        labels.append([IGNORED, *document[1:], eos_token_id])
        position_ids.append(range(len(document) + 1))
    missing = -sum(map(len, input_ids)) % sequence_length
    input_ids.append([eos_token_id] * missing)
    labels.append([IGNORED] * missing)
    position_ids.append(range(missing))
    rows = {
        name: _cut(chain.from_iterable(lists), sequence_length)
        for name, lists in (
            ("input_ids", input_ids),
            ("labels", labels),
            ("position_ids", position_ids),
        )
    }
    for row in rows["position_ids"]:
        _restart(row)
    return rows


def _cut(tokens: chain[int], length: int) -> list[list[int]]:
    rows = []
    while row := list(islice(tokens, length)):
        rows.append(row)
    return rows


def _restart(positions: list[int]) -> None:
    """Restart the positions of a row's first document at 0 if it began in the row before."""
    if first := positions[0]:
        for index, position in enumerate(positions):
            if position != first + index:
                break
            positions[index] = index


def _load_documents(source: DataSource, streaming: bool) -> Rows:
    if source.files is not None:
        paths = expand(source.files)
        is_json = {path.endswith((".jsonl", ".json")) for path in paths}
        if len(is_json) > 1:
            raise ValueError(f"files mixes JSON Lines with text: {', '.join(paths[:5])}")
        if is_json.pop():
            return load_dataset("json", data_files=paths, split="train", streaming=streaming)
        return load_dataset(
            "text", data_files=paths, split="train", streaming=streaming, sample_by="document"
        )
    name = str(source.dataset)
    try:
        if any((Path(name) / marker).exists() for marker in SAVED_TO_DISK):
            saved = load_from_disk(name)
            saved = saved[source.split] if isinstance(saved, DatasetDict) else saved
            return saved.to_iterable_dataset() if streaming else saved
        return load_dataset(name, source.name, split=source.split, streaming=streaming)
    except Exception as error:  # datasets raises many types
        raise ValueError(f"dataset={name!r} cannot be loaded: {error}") from error


def expand(patterns: Sequence[str]) -> list[str]:
    """Return the files that match glob patterns.

    Raises:
        ValueError: A pattern matches no file.
    """
    paths = []
    for pattern in patterns:
        found = sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise ValueError(f"files: {pattern!r} matches no file")
        paths += found
    return paths
