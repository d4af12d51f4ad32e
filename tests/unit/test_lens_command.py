"""`layerskip-vllm lens`: errors for bad input, and the results of a good run."""

import dataclasses
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig

from layerskip_vllm import lens
from layerskip_vllm.cli import main
from layerskip_vllm.lens.prompts import read_prompts
from layerskip_vllm.lens.ranges import parse_range
from layerskip_vllm.lens.record import LensRecord
from layerskip_vllm.lens.report import conclusions, print_report
from layerskip_vllm.lens.text import evenly_spaced, visible
from tests.models import byte_tokenizer

NUM_LAYERS = 4
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def path(random_llama):
    return random_llama(num_layers=NUM_LAYERS, late_scale=0.2, max_position_embeddings=128)


@pytest.fixture(scope="module")
def record_file(path, tmp_path_factory):
    file = tmp_path_factory.mktemp("lens") / "record.json"
    assert main(["lens", path, "--prompt", "def add(a, b):", "--json", str(file)]) == 0
    return file


@pytest.fixture(scope="module")
def record(record_file):
    return LensRecord.load(record_file)


@pytest.fixture
def fails(capsys):
    """`fails(*arguments)` -> error text of a run, which must end with exit code 2."""

    def error(*arguments) -> str:
        assert main(["lens", *map(str, arguments)]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("layerskip-vllm lens: ")
        return captured.err

    return error


PROMPT = ("--prompt", "x = 1", "--no-speed", "--max-tokens", "4")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--exit-layers", "2-4"), "--exit-layers='2-4' must stay in [1, 3]"),
        (("--exit-layers", "0"), "--exit-layers='0' must stay in [1, 3]"),
        (("--exit-layers", "3-2"), "--exit-layers='3-2': 3-2 runs backwards"),
        (("--exit-layers", "deep"), "--exit-layers='deep': expected a range such as 2-8 or 2,4,8"),
        (("--exit-layers", ""), "--exit-layers='': expected a range"),
        (
            ("--num-speculative-tokens", "1-129"),
            "--num-speculative-tokens='1-129' must stay in [1, 128]",
        ),
        (("--max-tokens", "1"), "--max-tokens=1 must be at least 3"),
        (("--max-length", "0"), "--max-length=0 must be at least 1"),
        (("--show-tokens", "0"), "--show-tokens=0 must be at least 1"),
        (("--num-prompts", "0"), "--num-prompts=0 must be at least 1"),
        (("--prompt", ""), "--prompt is empty"),
        (("--device", "toaster"), "--device='toaster' cannot be used"),
        (("--json", "/nowhere/a.json"), "the directory /nowhere does not exist"),
        (("--compare", "a.json"), "--compare draws into a plot: add --png FILE"),
        (("--compare", "absent.json", "--png", "a.png"), "absent.json: No such file"),
        (("--file", "absent.jsonl"), ": absent.jsonl: No such file"),
        (("--max-tokens", "200"), "--max-tokens=200 must be less than the model's 128 positions"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_bad_argument_is_named(path, fails, flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in fails(path, *PROMPT, *flags)
    assert list(tmp_path.iterdir()) == []


def test_no_prompt_is_an_error(path, fails):
    assert "no prompt: give --prompt TEXT or --file prompts.jsonl" in fails(path)


def test_a_model_that_does_not_exist_is_an_error(fails, tmp_path):
    assert f"MODEL='{tmp_path}/absent' cannot be loaded: " in fails(tmp_path / "absent", *PROMPT)
    assert len(fails(tmp_path / "absent", *PROMPT).splitlines()) == 1


def test_another_architecture_is_an_error(fails, tmp_path):
    GPT2LMHeadModel(
        GPT2Config(vocab_size=320, n_embd=8, n_layer=2, n_head=2, n_positions=64)
    ).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    assert "GPT2LMHeadModel has no model.layers, model.norm" in fails(tmp_path, *PROMPT)


def test_a_model_of_one_layer_is_an_error(fails, random_llama):
    assert "num_hidden_layers=1" in fails(random_llama(num_layers=1), *PROMPT)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: expected a string, not [1]"),
        ("7", "line 2: expected a string, not 7"),
        (
            '{"question": "?"}',
            "line 2: the object has neither 'prompt' nor 'text', only 'question'",
        ),
        ('{"prompt": null}', "line 2, 'prompt': expected a string, not null"),
        ('{"text": ""}', "line 2, 'text': the prompt is empty"),
    ],
)
def test_a_bad_line_is_named(path, fails, tmp_path, line, message):
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'"fine"\n{line}\n')
    assert f"{file}, {message}" in fails(path, "--file", file)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\n\n", "holds no prompt"), (b'"\xff"', "not UTF-8 text")],
)
def test_a_file_without_prompts_is_an_error(path, fails, tmp_path, content, message):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)
    assert f"{file}: {message}" in fails(path, "--file", file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("[]", "format=None must be 1"),
        ('{"format": 2}', "format=2 must be 1"),
        ('{"format": 1, "exits": []}', "not a whole record of the lens"),
    ],
)
def test_a_file_to_compare_with_must_be_a_record(path, fails, tmp_path, content, message):
    file = tmp_path / "other.json"
    file.write_text(content)
    error = fails(path, *PROMPT, "--png", tmp_path / "a.png", "--compare", file)
    assert f"{file}: {message}" in error


def test_prompts_come_from_the_command_line_then_from_the_file(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "b", "text": "no"}\n\n{"id": 1, "text": "c\\n"}\n"d\u2028e"\n')
    assert read_prompts(["a"], file) == ["a", "b", "c\n", "d\u2028e"]
    assert read_prompts(["a"], file, num_prompts=2) == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "numbers"), [("2-4", [2, 3, 4]), ("2,4,8", [2, 4, 8]), ("6, 1-3,2", [1, 2, 3, 6])]
)
def test_ranges(text, numbers):
    assert parse_range(text, 1, 8, "--flag") == numbers


def test_whitespace_is_made_visible():
    assert visible(" a\n\tb\x00") == "·a⏎⇥b\\x00"
    assert visible("") == "∅"


@pytest.mark.parametrize("last", [1, 2, 11, 12, 31, 79])
def test_shown_layers_include_the_first_and_the_last(last):
    layers = evenly_spaced(1, last, 12)
    assert layers == sorted(set(layers))
    assert len(layers) == min(last, 12)
    assert {1, last} <= set(layers)


def test_the_file_holds_every_figure(record_file, record, path):
    values = json.loads(record_file.read_text())
    assert values["format"] == 1
    assert values["model"] == path
    assert values["num_layers"] == NUM_LAYERS
    assert [entry["exit_layer"] for entry in values["exits"]] == [1, 2, 3, 4]
    assert values["num_text_positions"] == len("def add(a, b):")
    assert len(values["acceptance"]) == 3 * 8
    assert values["best"] in values["acceptance"]
    assert values["best"]["ideal_speedup"] == max(p["ideal_speedup"] for p in values["acceptance"])
    assert values["best_timed"]["timed_speedup"] == max(
        pair["timed_speedup"] for pair in values["acceptance"]
    )
    assert len(values["window"]["tokens"]) == 12
    assert {len(row) for row in values["window"]["top1"]} == {12}
    assert all(values["window"]["agrees"][-1])
    assert {"torch", "transformers", "layerskip_vllm", "python"} == values["versions"].keys()


def test_sizes_equal_models_cut_at_the_exit(record, path):
    for entry in record.exits:
        config = LlamaConfig.from_pretrained(path, num_hidden_layers=entry.exit_layer)
        size = AutoModelForCausalLM.from_config(config).num_parameters()
        assert (entry.num_parameters, entry.num_bytes) == (size, 4 * size)
        assert entry.tokens_per_s > 0


def test_timed_speedup_uses_measured_step_times(record):
    speeds = {entry.exit_layer: entry.tokens_per_s for entry in record.exits}
    for pair in record.acceptance:
        draft_length = pair.num_drafted / pair.num_drafts
        cost = 1 + draft_length * speeds[NUM_LAYERS] / speeds[pair.exit_layer]
        assert pair.timed_speedup == pytest.approx(pair.mean_acceptance_length / cost)


def test_what_a_run_prints(path, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    file = tmp_path / "prompts.jsonl"
    file.write_text('"for i in"\n{"text": "range(3): print(i)"}\n')
    json_file, png_file = tmp_path / "a.json", tmp_path / "a.png"
    flags = ("--exit-layers", "1,3", "--num-speculative-tokens", "2-3", "--dtype", "bfloat16")
    outputs = ("--json", str(json_file), "--png", str(png_file))
    code = main(
        ["lens", path, "--file", str(file), *PROMPT, *flags, *outputs, "--label", "a[/b]$x$"]
    )
    printed = capsys.readouterr().out
    record = LensRecord.load(json_file)
    assert code == 0
    assert max(map(len, printed.splitlines())) <= 80
    assert "✓" in printed
    assert f"Exits of a[/b]$x$, bfloat16, {record.num_prompts} prompt(s)" in printed
    assert record.num_prompts == 3
    assert (record.dtype, record.checkpoint_dtype) == ("bfloat16", "float32")
    assert all(entry.num_bytes == 4 * entry.num_parameters for entry in record.exits)
    assert {entry.tokens_per_s for entry in record.exits} == {None}
    assert (record.exit_layers, record.draft_lengths) == ([1, 3], [2, 3])
    assert re.search(r"no longer changes: \d\.\d of 4 on the prompts", printed)
    best = record.best
    assert f"Best by layers alone: self:{best.exit_layer} with K=" in printed
    assert png_file.read_bytes().startswith(PNG_SIGNATURE)


@pytest.mark.parametrize("speedup", [0.9, 1.5])
def test_the_last_line_names_the_pair_to_serve(record, speedup):
    """The best by measured speed where it is known, and none where drafting does not pay."""
    timed = dataclasses.replace(record.acceptance[-1], timed_speedup=speedup)
    last = conclusions(dataclasses.replace(record, best_timed=timed))[-1]
    pair = f"self:{timed.exit_layer} --num-speculative-tokens {timed.num_speculative_tokens}, or"
    assert (f"Serve it with --speculative-model {pair}" in last) == (speedup > 1)


@pytest.mark.parametrize(("width", "num_tokens"), [(30, 3), (60, 6), (80, 9), (200, 12)])
def test_as_many_of_the_last_tokens_as_fit_are_shown(record, width, num_tokens):
    console = Console(width=width, file=io.StringIO())
    print_report(console, record)
    header = next(
        line for line in console.file.getvalue().splitlines() if line.startswith(" exit ")
    )
    assert header.split() == ["exit", *record.window.tokens[-num_tokens:]]


def test_prompts_that_are_too_long_are_cut_with_a_notice(path, tmp_path, caplog):
    file = tmp_path / "a.json"
    flags = ("--prompt", "y" * 40, "--max-length", "30", "--json", str(file))
    assert main(["lens", path, *PROMPT, *flags]) == 0
    assert "1 of 2 prompts: only the first 30 tokens are used (--max-length=30)" in caplog.text
    assert LensRecord.load(file).num_text_positions == len("x = 1") + 30


def test_another_run_is_overlaid(path, record_file, tmp_path):
    alone, compared = tmp_path / "alone.png", tmp_path / "compared.png"
    for png, flags in ((alone, ()), (compared, ("--compare", str(record_file)))):
        assert main(["lens", path, *PROMPT, "--png", str(png), *flags]) == 0
    assert compared.read_bytes() != alone.read_bytes()


def test_the_lens_runs_without_vllm():
    modules = ", ".join(
        f"layerskip_vllm.lens.{path.stem}" for path in Path(lens.__path__[0]).glob("*.py")
    )
    code = f"import sys, {modules}; sys.exit('vllm' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_record_survives_saving_and_loading(record, tmp_path):
    record.save(tmp_path / "again.json")
    assert LensRecord.load(tmp_path / "again.json") == record
