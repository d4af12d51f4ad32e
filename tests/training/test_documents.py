"""Every source of documents: formats, compression, forms, gaps, and faults that are named."""

import bz2
import gzip
import json
import lzma

import pandas
import pyarrow
import pytest
from datasets import Dataset, DatasetDict

from layerskip_vllm.training.documents import load_documents, naming_bad_files
from layerskip_vllm.training.recipe import DataSource

TEXTS = ["first document, é", "second\nwith a line break"]

STREAMING = pytest.mark.parametrize("streaming", [False, True])


def json_lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def texts_of(source: DataSource, streaming: bool = False) -> list[str]:
    return [document["text"] for document in load_documents(source, streaming)]


def write(path, content: str) -> str:
    """Write text, compressed by the file's name."""
    packers = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    pack = packers.get(path.suffix, lambda data: data)
    path.write_bytes(pack(content.encode()))
    return str(path)


ROWS = [{"body": text, "id": 1} for text in TEXTS]


@STREAMING
@pytest.mark.parametrize(
    "name",
    [
        *("all.jsonl", "all.json", "all.ndjson", "ALL.JSONL", "all.v2.jsonl"),
        *("all.jsonl.gz", "all.json.gz", "all.JSONL.GZ", "all.jsonl.bz2", "all.ndjson.xz"),
    ],
)
def test_json_lines_by_every_name(tmp_path, name, streaming):
    path = write(tmp_path / name, json_lines(ROWS))
    assert texts_of(DataSource(files=[path], text_column="body"), streaming) == TEXTS


@STREAMING
@pytest.mark.parametrize("name", ["all.csv", "all.CSV", "all.csv.gz", "all.tsv", "all.parquet"])
def test_tables(tmp_path, name, streaming):
    frame, path = pandas.DataFrame(ROWS), tmp_path / name
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        separator = "\t" if ".tsv" in name else ","
        write(path, frame.to_csv(index=False, sep=separator))
    assert texts_of(DataSource(files=[str(path)], text_column="body"), streaming) == TEXTS


@STREAMING
@pytest.mark.parametrize("suffix", [".txt", ".py", ".md", "", ".txt.gz"])
def test_any_other_text_is_one_document_a_file(tmp_path, suffix, streaming):
    for index, text in enumerate(TEXTS):
        path = tmp_path / f"{index}{suffix}"
        write(path, text)
    assert texts_of(DataSource(files=[str(tmp_path / "*")]), streaming) == TEXTS


@STREAMING
def test_formats_mix(tmp_path, streaming):
    write(tmp_path / "a.jsonl", json_lines([{"text": "one", "id": 1}]))
    write(tmp_path / "b.txt", "two")
    write(tmp_path / "c.csv", "text,other\nthree,x\n")
    source = DataSource(files=[str(tmp_path / "*")])
    assert sorted(texts_of(source, streaming)) == ["one", "three", "two"]


@STREAMING
def test_saved_datasets(tmp_path, streaming):
    dataset = Dataset.from_dict({"body": TEXTS})
    dataset.save_to_disk(tmp_path / "saved")
    other = Dataset.from_dict({"body": ["other"]})
    DatasetDict({"train": other, "half": dataset}).save_to_disk(tmp_path / "splits")
    for folder, split in (("saved", "train"), ("splits", "half")):
        source = DataSource(dataset=str(tmp_path / folder), split=split, text_column="body")
        assert texts_of(source, streaming) == TEXTS


@STREAMING
@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
        {"prompt": "1 + 1 =", "completion": " 2"},
    ],
    ids=["messages", "prompt and completion"],
)
def test_forms_of_fine_tuning_keep_their_columns(tmp_path, row, streaming):
    path = write(tmp_path / "sft.jsonl", json_lines([{**row, "id": 1}] * 2))
    documents = list(load_documents(DataSource(files=[path]), streaming))
    assert documents == [row] * 2


@STREAMING
@pytest.mark.parametrize("column", ["conversations", "messages"])
def test_sharegpts_names_become_those_of_messages(tmp_path, column, streaming):
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]
    rows = [{column: [], "id": 0}, *[{column: turns, "id": 1}] * 2]
    path = write(tmp_path / "sft.jsonl", json_lines(rows))
    expected = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    documents = list(load_documents(DataSource(files=[path]), streaming))
    assert documents == [{"messages": expected}] * 2


@STREAMING
def test_documents_without_text_are_left_out_and_counted(tmp_path, streaming, caplog):
    rows = [{"text": "one"}, {"text": None}, {"id": 3}, {"text": ""}, {"text": "five", "id": 5}]
    write(tmp_path / "a.jsonl", json_lines(rows))
    write(tmp_path / "b.jsonl", "")
    write(tmp_path / "c.jsonl", json_lines([{"text": "six"}]))
    source = DataSource(files=[str(tmp_path / "*.jsonl")])
    assert texts_of(source, streaming) == ["one", "five", "six"]
    assert "1 of 3 files are empty" in caplog.text
    expected = "documents without text" if streaming else "3 of 6 documents have no text"
    assert expected in caplog.text


@STREAMING
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "one"}\n{"text": \n', "a.jsonl: row 2 cannot be read"),
        ("a.jsonl.gz", '{"text": "one"}\nnothing\n', "a.jsonl.gz: row 2 cannot be read"),
        ("a.jsonl", '{"text": null}\n', "holds no document"),
        ("a.jsonl", "", "all files are empty: .*a.jsonl"),
        ("a.csv", "text\n", "holds? no document"),
        ("a.parquet", "not a table", "cannot be read"),
        ("a.bin", "\0\1\2", "a.bin is neither text nor one of .json, "),
        ("a.jsonl", '{"body": "x", "id": 1}\n', "'text' is not in the data; it has: body, id"),
        ("a.jsonl", '{"text": 5}\n', "a document must be text, not int: 5"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, message, streaming):
    path = write(tmp_path / name, content)
    source = DataSource(files=[path])
    with pytest.raises(ValueError, match=message), naming_bad_files(source):
        list(load_documents(source, streaming))


def test_a_bad_row_is_looked_for_in_every_source(tmp_path):
    """Streams are read while training, where either may end it."""
    good = write(tmp_path / "train.jsonl", json_lines(ROWS))
    bad = write(tmp_path / "heldout.jsonl", json_lines(ROWS) + "nothing\n")
    sources = [DataSource(files=[path]) for path in (good, bad)]
    with pytest.raises(ValueError, match=r"heldout.jsonl: row 3"), naming_bad_files(*sources):
        raise pyarrow.ArrowInvalid


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"files": ["nowhere/*.txt"]}, "'nowhere/\\*.txt' matches no file"),
        ({"dataset": "nowhere/at-all"}, "dataset='nowhere/at-all' cannot be loaded"),
    ],
)
def test_missing_data_is_named(source, message):
    with pytest.raises(ValueError, match=message):
        load_documents(DataSource(**source), streaming=False)
