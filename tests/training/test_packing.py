"""Rows of packed documents."""

import random

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from layerskip_vllm.training.packing import PackedRows, pack, set_beginning

IGNORED = -100


def documents(lists) -> Dataset:
    return Dataset.from_dict({"input_ids": lists, "labels": lists})


def test_a_batch_by_hand():
    rows = [
        {"input_ids": [1, 2, 9, 5, 9], "labels": [1, 2, 9, 5, 9], "seq_lengths": [3, 2]},
        {"input_ids": [7, 8, 9], "labels": [IGNORED, IGNORED, 9], "seq_lengths": [3]},
    ]
    batch = PackedRows(pad_token_id=0)(rows)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[1, 2, 9, 5, 9], [7, 8, 9, 0, 0]],
        "labels": [[IGNORED, 2, 9, IGNORED, 9], [IGNORED, IGNORED, 9, IGNORED, IGNORED]],
        "position_ids": [[0, 1, 2, 0, 1], [0, 1, 2, 0, 0]],
    }


@settings(deadline=None, max_examples=30)
@given(
    lists=st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=30), min_size=1, max_size=8),
    length=st.integers(2, 16),
    streaming=st.booleans(),
)
def test_no_token_is_lost_and_every_label_is_its_token(lists, length, streaming):
    source = documents(lists)
    rows = list(pack(source.to_iterable_dataset() if streaming else source, length, split=True))
    packed = sorted(token for row in rows for token in row["input_ids"])
    assert packed == sorted(token for tokens in lists for token in tokens)
    assert all(sum(row["seq_lengths"]) == len(row["input_ids"]) <= length for row in rows)
    batch = PackedRows(0)(rows)
    is_target = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][is_target], batch["input_ids"][is_target])


def test_a_conversation_is_cut_off_where_text_goes_on_in_another_row():
    long = documents([list(range(10))])
    assert [row["input_ids"] for row in pack(long, 4, split=False)] == [[0, 1, 2, 3]]
    split = [row["input_ids"] for row in pack(long, 4, split=True)]
    assert sorted(split) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("case", ["2,048 of 43 tokens in 8,192", "mixed lengths in 1,024"])
def test_padding_is_at_most_1_percent_beyond_the_unavoidable(case, streaming):
    if case.startswith("2,048"):
        lengths, row_length = [43] * 2048, 8192
        fewest = -(-2048 // (8192 // 43))
    else:
        lengths = [random.Random(i).randint(1, 700) for i in range(4000)]
        row_length = 1024
        fewest = -(-sum(lengths) // row_length)
    source = documents([[1] * length for length in lengths])
    rows = list(pack(source.to_iterable_dataset() if streaming else source, row_length, True))
    assert len(rows) <= 1.01 * fewest + (0 if len(rows) < 100 else 1)


@pytest.mark.parametrize("tokens", [[5, 6], [1, 5, 6]])
@pytest.mark.parametrize("wanted", [False, True])
def test_a_document_begins_with_bos_or_not(tokens, wanted):
    document = set_beginning({"input_ids": tokens, "labels": tokens}, bos=1, wanted=wanted)
    assert document == dict.fromkeys(("input_ids", "labels"), [1, 5, 6] if wanted else [5, 6])
