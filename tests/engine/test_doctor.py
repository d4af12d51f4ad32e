"""`layerskip-vllm doctor MODEL FLAGS` finds what an engine would do, without making one."""

import json
import shutil
import subprocess

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from layerskip_vllm.doctor.checks import Check
from layerskip_vllm.doctor.engine import check_engine
from layerskip_vllm.measure.engine import model_runner, shut_down
from tests.commands import LAYERSKIP_VLLM
from tests.engine.engines import drafter, make_llm
from tests.models import byte_tokenizer

pytestmark = pytest.mark.runner_v1

SHORT = ("--max-model-len", "64", "--max-num-seqs", "4")


def found(model: str, *flags: str) -> dict[str, Check]:
    return {check.name: check for check in check_engine(model, [*SHORT, *flags])}


def failure(model: str, *flags: str) -> str:
    (check,) = (check for check in found(model, *flags).values() if check.status == "fail")
    return check.found


def test_a_model_without_exits_of_its_own_gets_a_warning(random_llama):
    checks = found(random_llama())
    assert checks["exit layers"].status == "warn"
    assert "by the model's depth" in checks["exit layers"].found
    assert {check.status for check in checks.values()} == {"ok", "warn"}
    assert checks["self:auto"].status == "ok"
    runner = "V1, no CUDA graphs, synchronous scheduling; V1 is the faster one on CPUs"
    assert checks["model runner"].found == runner
    assert checks["plain vLLM"].found.startswith("model runner V1")


@pytest.fixture
def knowing(random_llama, tmp_path):
    """`knowing(value)` -> path of a checkpoint whose config.json has that value for `layerskip`."""

    def copy(value: object) -> str:
        shutil.copytree(random_llama(), tmp_path / "model")
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"layerskip": value}))
        return str(tmp_path / "model")

    return copy


def test_exits_of_the_checkpoint_are_recommended(knowing):
    checks = found(knowing({"exit_layers": [4, 2], "num_speculative_tokens": 6}))
    assert checks["exit layers"].status == "ok"
    assert (
        "4 to begin with, of 2, 4 (by the checkpoint's config.json)" in checks["exit layers"].found
    )
    assert checks["drafts"].found == "at most 6 tokens, by the first 2 or 4 of 6 layers"
    assert checks["break-even"].values["break_even_acceptance_rate"] > 2 / 6  # a head costs too


def test_bad_exits_of_a_checkpoint_stop_auto_alone(knowing):
    model = knowing({"exit_layers": [9]})
    assert "exit_layers" in failure(model)
    checks = found(model, "--speculative-model", "self:2")
    assert checks["exit layers"].status == "warn"
    assert checks["self:2"].status == "ok"


def test_another_method_is_left_as_it_is(random_llama):
    checks = found(random_llama(), "--speculative-config", '{"method": "ngram"}')
    assert checks["ngram"].status == "fail"  # its K is missing
    assert "num_speculative_tokens" in checks["ngram"].found


def test_memory_is_what_an_engine_takes(random_llama):
    flags = ("--dtype", "float32", "--spec-model", "self:3", "--spec-tokens", "3")
    checks = found(random_llama(), *flags)
    stated = checks["exit query cache"]
    llm = make_llm(random_llama(), spec_model="self:3", spec_tokens=3, max_num_seqs=4)
    num_bytes = drafter(model_runner(llm)).exit_query_cache.num_bytes
    caches = model_runner(llm).kv_caches
    num_tokens = caches[0].shape[0] * llm.llm_engine.vllm_config.cache_config.block_size
    num_kv_bytes = sum(cache.nbytes for cache in caches)
    shut_down(llm)
    assert checks["KV cache"].values == {"bytes_per_token": num_kv_bytes / num_tokens}
    assert stated.found == f"{num_bytes / 1e6:.1f} MB a rank"
    assert stated.values == {"bytes_per_rank": num_bytes}


def test_a_kv_cache_that_fills_a_host_is_a_warning(random_llama, monkeypatch):
    check = found(random_llama())["KV cache"]
    assert check.status == "warn"
    assert check.advice == "vLLM takes 92 % of this host: set VLLM_CPU_KVCACHE_SPACE, in GiB"
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    assert found(random_llama())["KV cache"].status == "ok"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pipeline-parallel-size", "2"], "does not support pipeline parallelism"),
        (["--speculative-model", "self:6"], "exit_layer=6 must be in [1, 5] for a 6-layer target"),
        (["--spec-model", "self:3", "--spec-method", "ngram"], "does not take method='ngram'"),
        (["--early-exit", "7"], "early_exit=7 must be in [1, 6] for a 6-layer model"),
        (["--async-scheduling"], "asynchronous scheduling on model runner V1"),
    ],
)
def test_a_refusal_is_named_before_weights_load(random_llama, flags, message):
    assert message in failure(random_llama(), *flags)


def test_early_exit_is_checked_too(random_llama):
    checks = found(random_llama(), "--early-exit", "4")
    assert checks["--early-exit"].status == "ok"
    assert "drafts" not in checks


def test_other_models_are_refused(tmp_path):
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=2, n_head=1)).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    checks = found(str(tmp_path))
    assert checks["family"].status == "fail"
    assert checks["family"].found.startswith("GPT2LMHeadModel; supported: LlamaForCausalLM")


@pytest.mark.parametrize(
    ("flag", "advice"),
    [
        ("--speculativ-model=self:2", "did you mean --speculative-model?"),
        ("--max_modl_len=32", "did you mean --max-model-len?"),
        ("--frobnicate", "vllm serve --help lists the flags"),
    ],
)
def test_a_similar_flag_is_named_for_an_unknown_one(random_llama, flag, advice):
    checks = found(random_llama(), flag)
    assert checks["flags"].advice == advice
    assert checks["shape"].values["num_layers"] == 6


def test_a_missing_model_is_one_line(tmp_path):
    assert failure(str(tmp_path / "nothing")) == f"{tmp_path / 'nothing'}: no such folder"
    (tmp_path / "empty").mkdir()
    assert failure(str(tmp_path / "empty")) == f"{tmp_path / 'empty'}: no config.json in it"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--speculativ-model=self:2", "unrecognized arguments: --speculativ-model=self:2"),
        ("--max_modl_len=32", "unrecognized arguments"),
        ("--speculative-model=self:x", "'self:x': expected self:E"),
        ("--max-model-len=99999", "99999"),
    ],
)
def test_a_bad_flag_is_a_failure_too(random_llama, flag, message):
    assert message in failure(random_llama(), flag)


def test_the_command_prints_json_alone(random_llama):
    done = subprocess.run(
        [LAYERSKIP_VLLM, "doctor", random_llama(), "--json", *SHORT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["will_run"] is True
