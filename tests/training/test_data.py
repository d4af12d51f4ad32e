"""Packing, and every source of documents."""

import json

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st

from layerskip_vllm.training.data import load_rows, pack
from layerskip_vllm.training.recipe import DataSection, DataSource
from tests.models import byte_tokenizer

EOS, IGNORED = 256, -100


def test_rows_by_hand():
    rows = pack([[1, 2, 3], [], [4, 5]], sequence_length=4, eos_token_id=9)
    assert rows == {
        "input_ids": [[1, 2, 3, 9], [4, 5, 9, 9]],
        "labels": [[IGNORED, 2, 3, 9], [IGNORED, 5, 9, IGNORED]],
        "position_ids": [[0, 1, 2, 3], [0, 1, 2, 0]],
    }


def test_a_document_continues_in_the_next_row_from_position_0():
    rows = pack([[1, 2], [3, 4, 5, 6]], sequence_length=4, eos_token_id=9)
    assert rows["input_ids"] == [[1, 2, 9, 3], [4, 5, 6, 9]]
    assert rows["position_ids"] == [[0, 1, 2, 0], [0, 1, 2, 3]]
    assert rows["labels"][1] == [4, 5, 6, 9]


@given(
    documents=st.lists(st.lists(st.integers(0, 99), max_size=30), max_size=8),
    sequence_length=st.integers(2, 16),
)
def test_no_token_is_lost_and_no_label_crosses_a_document(documents, sequence_length):
    rows = pack(documents, sequence_length, EOS)
    flat = {name: [token for row in values for token in row] for name, values in rows.items()}
    expected = [token for document in documents if document for token in [*document, EOS]]
    assert flat["input_ids"][: len(expected)] == expected
    assert set(flat["input_ids"][len(expected) :]) <= {EOS}
    assert all(len(row) == sequence_length for values in rows.values() for row in values)
    for row_labels, row_ids, row_positions in zip(
        rows["labels"], rows["input_ids"], rows["position_ids"], strict=True
    ):
        assert row_positions[0] == 0
        for index, label in enumerate(row_labels):
            assert label in (IGNORED, row_ids[index])
            if label != IGNORED and index:
                assert row_positions[index] == row_positions[index - 1] + 1


TEXTS = ["first document, é", "second"]


@pytest.fixture
def sources(tmp_path):
    """The same two documents in every format."""
    for index, text in enumerate(TEXTS):
        (tmp_path / f"{index}.txt").write_text(text)
    lines = "".join(json.dumps({"body": text, "id": 1}) + "\n" for text in TEXTS)
    (tmp_path / "all.jsonl").write_text(lines)
    dataset = Dataset.from_dict({"body": TEXTS})
    dataset.save_to_disk(tmp_path / "saved")
    other = Dataset.from_dict({"body": ["other"]})
    DatasetDict({"train": other, "half": dataset}).save_to_disk(tmp_path / "splits")
    return {
        "text files": DataSource(files=[str(tmp_path / "*.txt")]),
        "JSON Lines": DataSource(files=[str(tmp_path / "all.jsonl")], text_column="body"),
        "a saved dataset": DataSource(dataset=str(tmp_path / "saved"), text_column="body"),
        "a saved split": DataSource(
            dataset=str(tmp_path / "splits"), split="half", text_column="body"
        ),
    }


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["text files", "JSON Lines", "a saved dataset", "a saved split"])
def test_documents_of_every_form_become_the_same_rows(sources, form, streaming):
    train = sources[form]
    section = DataSection(train=train, sequence_length=8, streaming=streaming)
    tokenizer = byte_tokenizer()
    rows = load_rows(train, section, tokenizer)
    token_ids = [token for row in rows for token in row["input_ids"]]
    assert tokenizer.decode(token_ids).split("<|end|>")[:2] == TEXTS
    assert set(next(iter(rows))) == {"input_ids", "labels", "position_ids"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"files": ["nowhere/*.txt"]}, "'nowhere/\\*.txt' matches no file"),
        ({"dataset": "nowhere/at-all"}, "dataset='nowhere/at-all' cannot be loaded"),
    ],
)
def test_missing_data_is_named(source, message):
    train = DataSource(**source)
    with pytest.raises(ValueError, match=message):
        load_rows(train, DataSection(train=train), byte_tokenizer())


def test_a_missing_column_is_named_with_the_existing_ones(sources):
    train = sources["JSON Lines"].model_copy(update={"text_column": "text"})
    with pytest.raises(
        ValueError, match=r"text_column='text' is not in the data; it has: body, id"
    ):
        load_rows(train, DataSection(train=train), byte_tokenizer())
