"""The results file: nothing is lost, and no other sweep's figures get in."""

import json

import pytest

from layerskip_vllm.sweep.results import ResultsFile
from tests.sweeps import DEVICE, plain, self_speculating

SUBJECT = {"model": "m", "fingerprint": "f", "versions": {"vllm": "0.32.0"}}
MEASURED = [plain(), self_speculating(4, 2, 1.2, draft_vocab_size=64)]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "results.jsonl"
    results = ResultsFile(path, SUBJECT)
    for entry in MEASURED:
        results.add(entry)
    results.close()
    return path


def reopened(path, subject=SUBJECT) -> list:
    results = ResultsFile(path, subject)
    results.close()
    return results.measurements


def test_measurements_are_read_as_they_were_added(path):
    assert reopened(path) == MEASURED
    assert reopened(path) == MEASURED


def test_a_measurement_is_in_the_file_at_once(tmp_path):
    path = tmp_path / "results.jsonl"
    results = ResultsFile(path, SUBJECT)
    results.add(MEASURED[0])
    assert len(path.read_text().splitlines()) == 2
    results.close()


def test_a_line_that_a_kill_cut_short_is_dropped(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert reopened(path) == MEASURED[:1]
    results = ResultsFile(path, SUBJECT)
    results.add(MEASURED[1])
    results.close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("num_bytes", [0, 1, 30])
def test_a_first_line_that_a_kill_cut_short_is_written_again(path, num_bytes):
    path.write_bytes(path.read_bytes()[:num_bytes])
    assert reopened(path) == []
    assert json.loads(path.read_text()) == {"sweep": SUBJECT}


def test_another_subject_is_refused_by_name_and_the_file_is_left_alone(path):
    before = path.read_bytes()
    other = SUBJECT | {"fingerprint": "g", "versions": {"vllm": "0.33.0"}}
    with pytest.raises(ValueError, match="belongs to another sweep") as error:
        reopened(path, other)
    assert "fingerprint was 'f' and is 'g'" in str(error.value)
    assert "versions was {'vllm': '0.32.0'} and is {'vllm': '0.33.0'}" in str(error.value)
    assert "model" not in str(error.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "x"}\n', "is not a results file of a sweep"),
        ("my notes", "is not a results file of a sweep"),
        ("my notes\n", "line 1: not JSON"),
        ("[1]\n", "line 1: expected an object"),
        (json.dumps({"sweep": SUBJECT}) + '\n{"round": 0}\n', "line 2: not a measurement"),
    ],
)
def test_a_file_that_is_no_results_file_is_refused_and_left_alone(tmp_path, content, message):
    path = tmp_path / "results.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        ResultsFile(path, SUBJECT)
    assert path.read_text() == content


def test_two_sweeps_cannot_write_one_file(path):
    first = ResultsFile(path, SUBJECT)
    with pytest.raises(ValueError, match="another sweep is writing"):
        ResultsFile(path, SUBJECT)
    first.close()
    assert reopened(path) == MEASURED


def test_another_device_is_refused(path):
    results = ResultsFile(path, SUBJECT)
    results.check_device(DEVICE)
    with pytest.raises(ValueError, match=r"was measured on a test's CPU, 2 cores, and this is H"):
        results.check_device("H100")
    results.close()
