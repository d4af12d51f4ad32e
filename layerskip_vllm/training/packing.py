"""Packs tokenized documents into rows with TRL, and makes batches of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from datasets import Dataset, IterableDataset
from torch.nn.utils.rnn import pad_sequence
from trl import pack_dataset

from layerskip_vllm.training.early_exit_loss import IGNORED

ROWS_PER_PACKING = 128
"""Rows that are packed together. The last one of them may stay part empty: 1 in 128 at most."""

SAMPLE = 256
"""Documents whose mean length tells how many fill those rows."""


def pack(
    documents: Dataset | IterableDataset, sequence_length: int, split: bool
) -> Dataset | IterableDataset:
    """Lay documents into rows of at most `sequence_length`, best fit first.

    Args:
        documents: With `input_ids` and `labels`.
        sequence_length: Tokens of a row.
        split: Whether a longer document continues in another row; else its end is cut off.

    Returns:
        Rows with `input_ids`, `labels` and `seq_lengths`, the lengths of a row's documents.
    """
    documents = documents.select_columns(["input_ids", "labels"])
    lengths = [len(document["input_ids"]) for document in islice(documents, SAMPLE)]
    mean = max(1, sum(lengths) // max(1, len(lengths)))
    batch_size = max(SAMPLE, ROWS_PER_PACKING * sequence_length // mean)
    strategy = "bfd_split" if split else "bfd"
    return pack_dataset(documents, sequence_length, strategy, {"batch_size": batch_size})


def set_beginning(
    document: Mapping[str, list[int]], bos: int, wanted: bool
) -> dict[str, list[int]]:
    """Let a tokenized document begin with the token `bos`, or not."""
    has_bos = document["input_ids"][0] == bos
    first = [bos] if wanted else []
    return {name: first + document[name][has_bos:] for name in ("input_ids", "labels")}


@dataclass(frozen=True)
class PackedRows:
    """Collates rows. Attention stays inside a document: its positions start at 0.

    A document's first token is not a target, since nothing of the document precedes it.

    Attributes:
        pad_token_id: Fills the shorter rows of a batch; not a target either.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
        """Return input_ids, labels and position_ids, each [num_rows, num_tokens], int64."""
        positions = [
            torch.cat([torch.arange(length) for length in row["seq_lengths"]]) for row in rows
        ]
        batch = {
            name: pad_sequence([torch.tensor(row[name]) for row in rows], True, padding)
            for name, padding in (("input_ids", self.pad_token_id), ("labels", IGNORED))
        }
        batch["position_ids"] = pad_sequence(positions, batch_first=True)
        batch["labels"][batch["position_ids"] == 0] = IGNORED
        return batch
