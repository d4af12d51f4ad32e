"""`layerskip-vllm doctor` without a model: what is installed, and the report's forms."""

import json

import pytest

from layerskip_vllm.cli import main
from layerskip_vllm.doctor import command, installation
from layerskip_vllm.doctor.checks import Check
from layerskip_vllm.doctor.installation import check_installation


def failures() -> list[Check]:
    return [check for check in check_installation() if check.status == "fail"]


def test_this_installation_is_fine():
    checks = list(check_installation())
    assert [check.name for check in checks] == ["versions", "vLLM", "plugin", "platform"]
    assert {check.status for check in checks} == {"ok"}
    assert "torch 2" in checks[0].found


def test_another_release_of_vllm_is_named(monkeypatch):
    monkeypatch.setattr("vllm.version.__version__", "0.31.2")
    monkeypatch.setattr("vllm.__version__", "0.31.2")
    (check,) = failures()
    assert "0.31.2" in check.found
    assert "0.32.* and 0.33.*" in check.found


def test_a_release_that_was_not_run_is_a_warning(monkeypatch):
    monkeypatch.setattr("vllm.version.__version__", "0.33.0")
    monkeypatch.setattr("vllm.__version__", "0.33.0")
    (check,) = (check for check in check_installation() if check.status == "warn")
    assert "0.33.0; its sources were checked" in check.found


def test_a_missing_vllm_ends_the_checks(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "vllm", None)
    *_, last = check_installation()
    assert last.status == "fail"
    assert "cannot be imported" in last.found
    assert "layerskip-vllm[cuda]" in last.advice


@pytest.mark.parametrize(("value", "loads"), [("", False), ("other", False), ("a,layerskip", True)])
def test_plugins_that_vllm_may_not_load(monkeypatch, value, loads):
    monkeypatch.setenv("VLLM_PLUGINS", value)
    assert [check.name for check in failures()] == ([] if loads else ["plugin"])


def test_a_plugin_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(installation, "entry_points", lambda group: [])
    assert [check.name for check in failures()] == ["plugin"]


@pytest.fixture
def checked(monkeypatch):
    """Lets the command find these instead."""

    def set_checks(*checks: Check) -> None:
        monkeypatch.setattr(command, "_checks", lambda model, flags: iter(checks))

    return set_checks


FINE = Check("engine", "drafts", "ok", "at most 4 [tokens]")
FAILED = Check("engine", "self:auto", "fail", "does not support x", "leave it out")


def test_the_json_report_is_all_that_is_printed(checked, capsys):
    checked(FINE, FAILED)
    assert main(["doctor", "m", "--json", "--max-model-len", "64"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["will_run"] is False
    assert report["flags"] == ["--max-model-len", "64"]
    assert [check["status"] for check in report["checks"]] == ["ok", "fail"]
    assert report["versions"]["layerskip-vllm"]


def test_the_printed_report_ends_with_what_follows(checked, capsys):
    checked(FINE)
    assert main(["doctor", "m"]) == 0
    printed = capsys.readouterr().out
    assert "ok   drafts: at most 4 [tokens]" in printed
    assert printed.strip().endswith("and no speed was measured.")
    checked(FINE, FAILED)
    assert main(["doctor", "m"]) == 1
    assert "FAIL self:auto: does not support x\n       leave it out" in capsys.readouterr().out


def test_flags_without_a_model_are_refused(capsys):
    assert main(["doctor", "--dtype=float32"]) == 2
    assert "give MODEL before the flags of vllm serve: --dtype=float32" in capsys.readouterr().err


def test_other_commands_refuse_unknown_flags(capsys):
    with pytest.raises(SystemExit):
        main(["train", "recipe.yaml", "--dtype", "float32"])
    assert "unrecognized arguments: --dtype float32" in capsys.readouterr().err
