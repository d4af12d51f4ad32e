"""`layerskip-vllm sweep` with pretended engines: bad input, interruptions, what it writes."""

import json
from pathlib import Path

import pytest

from layerskip_vllm.checkpoint.settings import CheckpointSettings, read_settings
from layerskip_vllm.cli import main
from layerskip_vllm.sweep import run as run_module
from layerskip_vllm.sweep.engine_process import EngineError
from layerskip_vllm.sweep.worker import llm_arguments
from tests.models import RandomLlama
from tests.sweeps import DEVICE, PretendedEngine

GRID = ("--exit-layers", "1,2", "--num-speculative-tokens", "1,2", "--rounds", "2")
NUM_TURNS = 2 * 2 * 2


@pytest.fixture
def engine(monkeypatch):
    for name, value in (("started", []), ("calls", []), ("alive", 0)):
        monkeypatch.setattr(PretendedEngine, name, value, raising=False)
    monkeypatch.setattr(run_module, "EngineProcess", PretendedEngine)
    return PretendedEngine


@pytest.fixture
def model(tmp_path):
    return RandomLlama(num_layers=3, max_position_embeddings=256).save(tmp_path / "models")


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"x = {i}"}) + "\n" for i in range(5)))
    return file


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def sweep(engine, model, prompts, output, capsys):
    """`sweep(*flags)` -> (exit code, what it printed)."""

    def run(*flags: str) -> tuple[int, str]:
        arguments = [model, "--prompts", prompts, *GRID, "--output", output, *flags]
        code = main(["sweep", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--exit-layers", "1-3"), "--exit-layers='1-3' must stay in [1, 2]"),
        (("--exit-layers", "0"), "--exit-layers='0' must stay in [1, 2]"),
        (("--exit-layers", "deep"), "--exit-layers='deep': expected a range"),
        (("--num-speculative-tokens", "0-2"), "--num-speculative-tokens='0-2' must stay in"),
        (("--batch-size", "4", "0"), "--batch-size=0 must be at least 1"),
        (("--rounds", "0"), "--rounds=0 must be at least 1"),
        (("--max-tokens", "7"), "--max-tokens=7 must be at least 8"),
        (("--max-tokens", "256"), "--max-tokens=256 must be less than the model's 256 positions"),
        (("--max-length", "0"), "--max-length=0 must be at least 1"),
        (("--temperature", "-1"), "--temperature=-1.0 must be at least 0"),
        (("--temperature", "nan"), "--temperature=nan must be at least 0"),
        (("--num-prompts", "0"), "--num-prompts=0 must be at least 1"),
        (("--draft-vocab-size", "321"), "--draft-vocab-size=321 must be in [0, 320]"),
        (("--draft-vocab-size", "-1"), "--draft-vocab-size=-1 must be in [0, 320]"),
        (("--draft-vocab-counts", "c.json"), "has no effect without --draft-vocab-size"),
        (("--draft-vocab-size", "64", "--draft-vocab-counts", "absent.json"), "absent.json"),
        (("--prompts", "absent.jsonl"), ": absent.jsonl: No such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_bad_argument_is_named_before_anything_is_measured(sweep, engine, output, flags, message):
    code, printed = sweep(*flags)
    assert code == 2
    assert printed.startswith("layerskip-vllm sweep: ")
    assert message in printed
    assert engine.started == []
    assert not (output / "results.jsonl").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "holds no prompt"), ('""\n', "the prompt is empty"), ("{}\n", "neither 'prompt' nor")],
)
def test_bad_prompts_are_named(sweep, prompts, content, message):
    prompts.write_text(content)
    code, printed = sweep()
    assert code == 2
    assert f"{prompts}" in printed
    assert message in printed


def test_a_model_that_does_not_exist_is_an_error(sweep, prompts, capsys, tmp_path):
    assert main(["sweep", str(tmp_path / "absent"), "--prompts", str(prompts)]) == 2
    assert "absent' cannot be loaded: " in capsys.readouterr().err


def test_an_architecture_without_self_speculation_is_named(sweep, model):
    config = Path(model) / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "GPT2LMHeadModel"))
    code, printed = sweep()
    assert code == 2
    assert "is a GPT2LMHeadModel: self:E supports LlamaForCausalLM" in printed


def test_a_sweep_writes_all_files_and_ends_with_the_best_pair_and_its_command(sweep, output, model):
    code, printed = sweep()
    assert code == 0
    names = {path.name for path in output.iterdir()}
    assert names == {"results.jsonl", "sweep.md", "sweep.png", "logs"}
    end = printed.rstrip().splitlines()
    assert end[-1] == f"vllm serve {model} --speculative-model self:2 --num-speculative-tokens 2"
    assert "Best overall: self:2, K=2: 1.50x." in end
    assert len((output / "results.jsonl").read_text().splitlines()) == 1 + 2 + NUM_TURNS


def test_one_engine_is_alive_at_a_time(sweep, engine):
    sweep()
    assert engine.started == ["plain", "self:1", "self:2", "plain", "self:2", "self:1"]
    assert engine.alive == 0


def test_kept_engines_start_once(sweep, engine):
    sweep("--keep-engines")
    assert engine.started == ["plain", "self:1", "self:2"]
    assert engine.alive == 0


def test_a_rerun_measures_nothing_and_reports_the_same(sweep, engine, output):
    _, first = sweep()
    page = (output / "sweep.md").read_text()
    engine.started.clear()
    code, second = sweep()
    assert code == 0
    assert engine.started == []
    assert f"{NUM_TURNS} of {NUM_TURNS} measurements are in" in second
    assert first.rstrip().splitlines()[-4:] == second.rstrip().splitlines()[-4:]
    assert (output / "sweep.md").read_text() == page


def test_more_rounds_and_drafts_add_to_what_is_there(sweep, engine):
    sweep()
    engine.calls.clear()
    sweep("--rounds", "3", "--num-speculative-tokens", "1,2,3")
    drafted = [call for call in engine.calls if call[0] != "plain"]
    assert len(drafted) == 2 * 3 * 3 - NUM_TURNS
    assert engine.calls.count(("self:1", 3)) == 3


@pytest.mark.parametrize(
    ("failure", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "Interrupted; the engines are stopped."),
        (EngineError("self:1: out of memory (log: x)"), 1, "self:1: out of memory (log: x)"),
    ],
)
def test_an_interrupted_sweep_says_how_to_go_on_and_a_rerun_does(
    sweep, engine, monkeypatch, failure, code, message
):
    monkeypatch.setattr(engine, "failure", failure)
    monkeypatch.setattr(engine, "fail_after", 4)  # plain and three turns
    stopped, printed = sweep()
    assert stopped == code
    assert message in printed
    assert f"3 of {NUM_TURNS} measurements are in" in printed
    assert printed.rstrip().endswith("the same command goes on from there.")
    assert engine.alive == 0
    engine.calls.clear()
    monkeypatch.setattr(engine, "fail_after", None)
    assert sweep()[0] == 0
    assert sum(name != "plain" for name, _ in engine.calls) == NUM_TURNS - 3


@pytest.mark.parametrize("change", ["prompts", "weights", "flags"])
def test_results_of_another_sweep_are_refused_and_kept(sweep, output, model, prompts, change):
    sweep()
    before = (output / "results.jsonl").read_bytes()
    flags: tuple[str, ...] = ()
    if change == "prompts":
        prompts.write_text('"another"\n')
    elif change == "weights":
        weights = Path(model) / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-100:] = bytes(100)
        weights.write_bytes(content)
    else:
        flags = ("--vllm-flags", "--enforce-eager")
    code, printed = sweep(*flags)
    assert code == 2
    name = {"prompts": "prompts", "weights": "fingerprint", "flags": "vllm_flags"}[change]
    assert f"{name} was " in printed
    assert (output / "results.jsonl").read_bytes() == before


def test_counts_for_a_draft_vocabulary_may_come_later_but_not_change(sweep, output, tmp_path):
    assert sweep()[0] == 0
    counts = tmp_path / "counts.json"
    counts.write_text('{"7": 2}')
    flags = ("--draft-vocab-size", "0", "64", "--draft-vocab-counts", str(counts))
    code, printed = sweep(*flags)
    assert code == 0
    assert f"{NUM_TURNS} of {2 * NUM_TURNS} measurements are in" in printed
    before = (output / "results.jsonl").read_bytes()
    counts.write_text('{"8": 2}')
    code, printed = sweep(*flags)
    assert code == 2
    assert "holds draft vocabularies with other --draft-vocab-counts" in printed
    assert sweep()[0] == 0
    assert (output / "results.jsonl").read_bytes() == before


def test_results_of_another_device_are_refused(sweep, engine, monkeypatch):
    sweep()
    monkeypatch.setattr(engine, "device", "H100")
    code, printed = sweep("--rounds", "3")
    assert code == 2
    assert f"was measured on {DEVICE}, and this is H100" in printed
    assert engine.alive == 0


def test_save_writes_the_best_into_the_checkpoint_and_the_sweep_stays_its_own(sweep, model, engine):
    code, printed = sweep("--save")
    assert code == 0
    assert 'config.json: layerskip: {"exit_layers": [2, 1], "num_spec' in printed
    assert read_settings(Path(model)) == CheckpointSettings(
        (2, 1), num_speculative_tokens=2, acceptance_rate=(0.7895, 0.7895)
    )
    engine.started.clear()
    assert sweep("--save")[0] == 0  # the key does not make it another checkpoint
    assert engine.started == []


def test_save_leaves_the_checkpoint_alone_where_no_pair_pays(sweep, model, engine, monkeypatch):
    monkeypatch.setattr(engine, "gain", 0.95)
    code, printed = sweep("--save")
    assert code == 1
    assert "config.json is unchanged, since no pair beats plain vLLM" in printed
    assert read_settings(Path(model)) is None
    assert printed.rstrip().splitlines()[-1] == f"vllm serve {model}"


def test_save_refuses_a_model_that_is_no_folder_before_it_measures(engine, prompts, capsys):
    assert main(["sweep", "org/model", "--prompts", str(prompts), "--save"]) == 2
    message = "MODEL='org/model' is not a local checkpoint folder: download it first"
    assert message in capsys.readouterr().err
    assert engine.started == []


def test_flags_of_vllm_become_arguments_of_its_engine():
    flags = ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "8"]
    assert llm_arguments(flags) == {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 8}
    assert llm_arguments([]) == {}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--no-such-flag"], "--vllm-flags: unrecognized arguments: --no-such-flag"),
        (["--dtype", "float7"], "--vllm-flags: argument --dtype: invalid"),
        (["--speculative-model", "self:2"], "the sweep sets spec_model itself: leave it out"),
        (["--early-exit", "2"], "the sweep sets additional_config itself: leave it out"),
    ],
)
def test_flags_that_vllm_or_the_sweep_does_not_take_are_named(flags, message):
    with pytest.raises(ValueError, match="--vllm-flags") as error:
        llm_arguments(flags)
    assert message in str(error.value)
