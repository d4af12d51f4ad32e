"""With weights that torchao rounds on load, output equals plain decoding with the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from layerskip_vllm.demo.models import PYTHON_10M

SITE = Path(sys.prefix) / "torchao"
"""Outside the environment (requirements/torchao.txt), so tests use it in separate processes."""

DECODE = """
import json, sys
import torchao.quantization
from torchao.core.config import config_to_dict
from tests.engine.engines import assert_speculated, both, greedy

model, prompts, config, dtype = json.loads(sys.argv[1])
config_json = json.dumps(config_to_dict(getattr(torchao.quantization, config)()))
arguments = {"quantization": "torchao", "dtype": dtype}
arguments["hf_overrides"] = {"quantization_config_dict_json": config_json}
expected, actual, counted = both(model, prompts, greedy(64), 4, 4, **arguments)
assert_speculated(counted)
print("RESULT", json.dumps([expected, actual]))
"""


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ("Int8DynamicActivationInt8WeightConfig", "float32"),
        pytest.param("Int8WeightOnlyConfig", "float32", marks=pytest.mark.slow),
        pytest.param("Int8DynamicActivationIntxWeightConfig", "float32", marks=pytest.mark.slow),
        pytest.param("Float8WeightOnlyConfig", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_output_equals_plain_decoding(config, dtype):
    lines = (PYTHON_10M / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines][:8]
    done = subprocess.run(
        [sys.executable, "-c", DECODE, json.dumps([str(PYTHON_10M), prompts, config, dtype])],
        env=os.environ | {"PYTHONPATH": str(SITE)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    expected, actual = json.loads(line.removeprefix("RESULT "))
    assert actual == expected
