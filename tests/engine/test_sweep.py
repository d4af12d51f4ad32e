"""`layerskip-vllm sweep` with real engines in their own processes."""

import gc
import json

import pytest

from layerskip_vllm.cli import main
from layerskip_vllm.measure.engine import VllmEngine
from layerskip_vllm.sweep.engine_process import EngineError, EngineProcess
from layerskip_vllm.sweep.worker import measure
from tests.engine.engines import random_prompts

FLAGS = ["--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", "16777216"]
MAX_TOKENS = 12


@pytest.fixture(scope="module")
def path(random_llama):
    # Layers from 1 on add nothing, so every draft of every exit is accepted.
    return random_llama(num_layers=4, late_scale=0.0, max_position_embeddings=128)


@pytest.mark.slow
def test_a_sweep_measures_each_pair_and_goes_on_where_it_stopped(path, tmp_path, capfd):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"def add(a, b):"\n"import os"\n')
    counts = tmp_path / "counts.json"
    counts.write_text(json.dumps({str(token_id): 320 - token_id for token_id in range(320)}))
    arguments = [
        *("sweep", path, "--prompts", str(prompts), "--output", str(tmp_path / "out")),
        *("--exit-layers", "1", "--num-speculative-tokens", "1,3", "--batch-size", "1", "2"),
        *("--max-tokens", str(MAX_TOKENS), "--rounds", "1", "--draft-vocab-counts", str(counts)),
    ]
    flags = ["--vllm-flags", *FLAGS]
    assert main([*arguments, "--draft-vocab-size", "320", *flags]) == 0
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines[1:]]
    drafting = [entry for entry in entries if entry["exit_layer"] is not None]
    assert [(e["num_speculative_tokens"], e["batch_size"]) for e in drafting] == [
        *((1, 1), (3, 1), (1, 2), (3, 2)),
    ]
    assert all(entry["tokens_per_s"] > 0 for entry in entries)
    assert all(entry["num_accepted"] == entry["num_drafted"] > 0 for entry in drafting)
    for entry in drafting:  # none is drafted beyond the last token, so a request's end drafts less
        k, num_requests = entry["num_speculative_tokens"], 4
        assert k * (entry["num_drafts"] - num_requests) <= entry["num_drafted"]
        assert entry["num_drafted"] <= k * entry["num_drafts"]
    assert main([*arguments, "--draft-vocab-size", "320", "0", *flags]) == 0
    assert "4 of 8 measurements are in" in capfd.readouterr().out
    assert {path.name for path in (tmp_path / "out" / "logs").iterdir()} == {
        *("plain.log", "self-1-draft-vocabulary-320.log", "self-1.log"),
    }


def test_an_engine_that_does_not_start_names_the_cause_and_its_log(path, tmp_path):
    log = tmp_path / "engine.log"
    start = {"model": path, "vllm_flags": ["--no-such"], "defaults": {}, "speculation": {}}
    with pytest.raises(EngineError, match=r"self:9: ValueError: --vllm-flags: unrecog.*log: "):
        EngineProcess("self:9", start, log)
    assert "Traceback" in log.read_text()


def test_a_limit_on_every_request_drafts_as_an_engine_of_that_k(random_llama):
    """So one engine measures every K up to its own."""
    path = random_llama(num_layers=4, late_scale=0.3)
    prompts = random_prompts([5, 9, 7], seed=2)
    counted = []
    for spec_tokens, limit in ((5, 2), (2, None)):
        engine = VllmEngine(
            {
                "model": path,
                "dtype": "float32",
                "enforce_eager": True,
                "max_model_len": 128,
                "kv_cache_memory_bytes": 16 << 20,
                "block_size": 32,
                "max_num_seqs": 4,
                "spec_model": "self:2",
                "spec_tokens": spec_tokens,
                "additional_config": {"layerskip": {"adaptive": False}},
            }
        )
        try:
            counted.append(measure(engine, [prompts], 32, 0, limit)["drafts"])
        finally:
            engine.close()
            gc.collect()
    assert counted[0] == counted[1]
    assert 0 < counted[0]["num_accepted"] < counted[0]["num_drafted"]
