"""On an unsupported vLLM release our features are refused, and plain vLLM is unaffected."""

import json
import subprocess
import sys

import pytest

from tests.engine.cut_models import early_exit

SELF = {"spec_model": "self:3"}

UNDER_ANOTHER_VERSION = """
import contextlib, io, json, sys
import vllm.version
vllm.version.__version__ = "0.34.1"
from vllm.config import KVTransferConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.plugins import load_general_plugins
from vllm.utils.argparse_utils import FlexibleArgumentParser

def refusal(function, *args, **kwargs):
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            function(*args, **kwargs)
    except (Exception, SystemExit) as error:
        return (errors.getvalue() + str(error)).strip()

model, flags, command_lines = json.loads(sys.argv[1])
refusals = [refusal(lambda: EngineArgs(model, max_model_len=64, **f).create_engine_config())
            for f in flags]
load_general_plugins()
parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
print("RESULT", json.dumps(refusals + [refusal(parser.parse_args, line) for line in command_lines]))
"""


@pytest.fixture(scope="module")
def refusals(random_llama):
    """Errors under another vLLM version, by flag; None if there is none.

    One process runs all cases, since importing vLLM takes 9 s.
    """
    command_lines = [["--speculative-model", "self:3"], ["--early-exit", "3"]]
    cases = json.dumps([random_llama(), [SELF, early_exit(3), {}], command_lines])
    run = subprocess.run(
        [sys.executable, "-c", UNDER_ANOTHER_VERSION, cases],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    (line,) = (line for line in run.stdout.splitlines() if line.startswith("RESULT "))
    names = ["self:3", "early exit", "plain", *(line[0] for line in command_lines)]
    return dict(zip(names, json.loads(line.removeprefix("RESULT ")), strict=True))


@pytest.mark.parametrize("feature", ["self:3", "early exit"])
def test_our_features_are_refused_on_another_vllm_version(refusals, feature):
    assert "supports vLLM 0.32.* and 0.33.*, and this is vLLM 0.34.1" in refusals[feature]


def test_plain_vllm_of_another_version_works(refusals):
    assert refusals["plain"] is None


@pytest.mark.parametrize("flag", ["--speculative-model", "--early-exit"])
def test_our_flags_are_refused_on_another_vllm_version(refusals, flag):
    last_line = refusals[flag].splitlines()[-2]
    assert f"argument {flag}: layerskip_vllm" in last_line
    assert "supports vLLM 0.32.* and 0.33.*, and this is vLLM 0.34.1" in last_line
