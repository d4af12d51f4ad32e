"""The arguments of `python -m benchmarks.compare`."""

import pytest

from benchmarks import arguments
from benchmarks.compare import parse_arguments, row_counts
from benchmarks.systems import SYSTEMS, table
from tests.benchmarks.prepared import model


def test_explicit_flags_override_smoke():
    args = parse_arguments(["--smoke", "--num-rounds", "3"])
    assert (args.model, args.num_rounds, args.num_starts) == (["small"], 3, 0)


def test_installed_libraries_are_preloaded_by_default(monkeypatch):
    monkeypatch.setattr(arguments, "installed_preloads", lambda: ["tcmalloc"])
    assert parse_arguments([]).preload == ["tcmalloc"]
    assert parse_arguments(["--preload", "iomp"]).preload == ["iomp"]
    assert parse_arguments(["--preload"]).preload == []


def test_row_counts_cover_batches_and_their_verification():
    args = parse_arguments(["--batch-size", "3", "--num-speculative-tokens", "6"])
    assert {3, 21} <= set(row_counts(args))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batch-size", "16", "--num-speculative-tokens", "8"], "144 must be at most 128"),
        (["--batch-size", "0"], "0 must be at least 1"),
        (["--system", "medusa"], "invalid choice: 'medusa'"),
        (["--model", "gpt"], "invalid choice: 'gpt'"),
        (["--temperature", "-1"], "-1 must be at least 0"),
        (
            ["--temperature", "0.8", "--system", "self", "ngram"],
            "ngram would not give plain's text",
        ),
    ],
)
def test_invalid_arguments_are_refused(argv, message, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(argv)
    assert message in capsys.readouterr().err


def test_the_table_lists_every_system_in_order():
    with_vocab = model(draft_vocab={"draft_vocab_size": 4})
    assert tuple(table(with_vocab, 4, eager=True)) == SYSTEMS
    assert set(SYSTEMS) - set(table(model(), 4, eager=True)) == {"self-draft-vocab"}


def test_default_settings_set_only_the_exit_layer():
    systems = table(model(), 4, eager=True)
    extra = dict(systems["self-default"].arguments.items() - systems["plain"].arguments.items())
    assert extra == {"spec_model": "self:2"}


def test_vllm_systems_share_all_of_plains_arguments():
    systems = table(model(), 4, eager=True)
    plain = systems["plain"].arguments
    for system in systems.values():
        if system.engine == "vllm":
            assert {key: system.arguments[key] for key in plain} == plain


def test_vllm_engines_run_as_many_requests_as_asked():
    systems = table(model(), 4, eager=True, max_num_seqs=3).values()
    assert {s.arguments["max_num_seqs"] for s in systems if s.engine == "vllm"} == {3}
