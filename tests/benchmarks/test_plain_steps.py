"""The cost of steps without drafts: the processes that run and the table."""

from contextlib import contextmanager
from types import SimpleNamespace

from benchmarks import plain_steps
from benchmarks.against import OTHER
from benchmarks.plain_steps import OWN, markdown, measure
from benchmarks.systems import System
from layerskip_vllm.measure.decoding import DraftCounts
from tests.benchmarks.prepared import model

SECONDS = {"plain": 2.0, OWN: 2.5, OWN + OTHER: 4.0}


def test_every_pair_has_new_processes_in_turn(monkeypatch, tmp_path):
    started = []

    @contextmanager
    def children(systems, env, _folder):
        ((name, system),) = systems.items()
        started.append((name, env["PLACE"], system))
        yield {name: name}

    def decode(name, prompts, max_tokens):
        assert (len(prompts), max_tokens) == (1, 200)
        drafts = DraftCounts(num_drafted=0 if name == "plain" else 4)
        return SimpleNamespace(step_s=[SECONDS[name]], drafts=drafts)

    monkeypatch.setattr(plain_steps, "children", children)
    monkeypatch.setattr(plain_steps, "decode", decode)
    systems = {name: System(name, "vllm", {}) for name in SECONDS}
    env = {"PLACE": "here"}
    found = measure(model(), systems, env, preload=[], num_pairs=2, folder=tmp_path)
    assert started == [(name, "here", system) for name, system in systems.items()] * 2
    assert found.tokens_per_s == {"plain": [100, 100], OWN: [80, 80], OWN + OTHER: [50, 50]}
    assert found.drafted == {"plain": 0, OWN: 0.02, OWN + OTHER: 0.02}
    lines = markdown(found).splitlines()
    assert "| self-default, nothing preloaded | 80.0 | 0.800 [0.800, 0.800] |" in lines[3]
    assert lines[-1] == "This checkout over the other: 1.600 [1.600, 1.600]"
