"""Measurements of sweeps that never ran and an engine that pretends, for tests of the rest."""

import json
from pathlib import Path

from layerskip_vllm.measure.decoding import DraftCounts
from layerskip_vllm.sweep.engine_process import Speed
from layerskip_vllm.sweep.plan import PLAIN, EngineSetup, Turn
from layerskip_vllm.sweep.results import Measurement

DEVICE = "a test's CPU, 2 cores"


def plain(tokens_per_s: float = 10.0, round_index: int = 0, batch_size: int = 1) -> Measurement:
    turn = Turn(round_index, PLAIN, 0, batch_size)
    return Measurement(turn, tokens_per_s, tokens_per_s, DraftCounts(), DEVICE)


def self_speculating(
    exit_layer: int,
    num_speculative_tokens: int,
    speedup: float,
    *,
    round_index: int = 0,
    batch_size: int = 1,
    draft_vocab_size: int | None = None,
    acceptance: float = 0.5,
) -> Measurement:
    """A turn beside plain vLLM at 10 tokens/s; `acceptance` of 100 first drafts are accepted."""
    setup = EngineSetup(exit_layer, draft_vocab_size)
    turn = Turn(round_index, setup, num_speculative_tokens, batch_size)
    accepted = round(100 * acceptance)
    drafts = DraftCounts(100, 100 * num_speculative_tokens, accepted, 100 - accepted)
    return Measurement(turn, 10 * speedup, 10.0, drafts, DEVICE)


class PretendedEngine:
    """Decodes at once: exit 2 with K = 2 is 1.5 times as fast as plain vLLM, all others slower."""

    started: list[str]
    calls: list[tuple[str, int | None]]
    alive: int
    device = DEVICE
    fail_after: int | None = None
    failure: BaseException = KeyboardInterrupt()
    gain = 1.5

    def __init__(self, name: str, start: dict, log: Path) -> None:
        self.name = name
        assert json.loads(json.dumps(start)) == start
        PretendedEngine.started.append(name)
        PretendedEngine.alive += 1

    def measure(self, batches, max_tokens, temperature, num_speculative_tokens) -> Speed:
        if len(self.calls) == self.fail_after:
            raise self.failure
        self.calls.append((self.name, num_speculative_tokens))
        speed = 0.9 if num_speculative_tokens else 1.0
        if (self.name, num_speculative_tokens) == ("self:2", 2):
            speed = self.gain
        return Speed(10 * speed, DraftCounts(100, 200, 150, 40))

    def close(self) -> None:
        PretendedEngine.alive -= 1
