"""Measurements of sweeps that never ran, for the tests of what follows from them."""

from layerskip_vllm.measure.decoding import DraftCounts
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
