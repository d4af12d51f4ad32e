"""Runs the whole lens on a loaded model: predictions, acceptance, speed, record."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from layerskip_vllm.lens.acceptance import Expectation
from layerskip_vllm.lens.exits import num_parameters
from layerskip_vllm.lens.lens import Lens, look
from layerskip_vllm.lens.record import ExitRecord, LensRecord, PairRecord, WindowRecord
from layerskip_vllm.lens.speed import measure_tokens_per_s
from layerskip_vllm.lens.text import visible
from layerskip_vllm.version import __version__


@dataclass(frozen=True)
class Subject:
    """A loaded model with its tokenizer and names."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    label: str  # name in plots
    checkpoint_dtype: torch.dtype  # for sizes; the lens may compute in another

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens at which vLLM ends a request: those of tokenizer and generation config."""
        configured = self.model.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        return frozenset(i for i in (*ids, self.tokenizer.eos_token_id) if i is not None)


@dataclass(frozen=True)
class Scope:
    """What a run computes."""

    exit_layers: Sequence[int]  # E to replay and to measure
    draft_lengths: Sequence[int]  # K to replay
    max_tokens: int = 64  # most tokens to generate per prompt
    num_window_tokens: int = 12  # positions of the tokens x layers table
    measure_speed: bool = True


def survey(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    scope: Scope,
    progress: Callable[[str], None] = lambda _: None,
) -> LensRecord:
    """Read every layer's predictions on prompts, given as token ids.

    Args:
        subject: The model.
        prompts: At least one, none of them empty.
        scope: What to compute.
        progress: Called with a line that describes the next stage.

    Raises:
        ValueError: The model is not a decoder built like Llama.
    """

    def one_by_one() -> Generator[Sequence[int]]:
        for number, prompt in enumerate(prompts, start=1):
            progress(f"reading prompt {number} of {len(prompts)}")
            yield prompt

    lens = look(
        subject.model,
        one_by_one(),
        max_tokens=scope.max_tokens,
        max_num_speculative_tokens=max(scope.draft_lengths),
        stop_ids=subject.stop_ids,
    )
    speeds: dict[int, float] = {}
    if scope.measure_speed:
        progress("measuring the speed of each exit")
        measured = dict.fromkeys([*scope.exit_layers, lens.num_layers])
        speeds = measure_tokens_per_s(subject.model, measured, prompts[0])
    return _record(subject, scope, lens, speeds)


def _record(
    subject: Subject,
    scope: Scope,
    lens: Lens,
    speeds: dict[int, float],  # exit layer -> tokens/s; empty: not measured
) -> LensRecord:
    pairs = [
        _pair(lens.expect(e, k), speeds) for e in scope.exit_layers for k in scope.draft_lengths
    ]
    return LensRecord(
        label=subject.label,
        model=subject.name,
        dtype=_name(subject.model.dtype),
        checkpoint_dtype=_name(subject.checkpoint_dtype),
        device=subject.model.device.type,
        num_threads=torch.get_num_threads(),
        versions=_versions(),
        num_layers=lens.num_layers,
        num_prompts=len(lens.traces),
        num_text_positions=lens.top1_ids("text").shape[1],
        num_continuation_positions=lens.top1_ids("continuation").shape[1],
        max_tokens=scope.max_tokens,
        mean_settle_layer_text=lens.mean_settle_layer("text"),
        mean_settle_layer_continuation=lens.mean_settle_layer("continuation"),
        exits=_exits(subject, lens, speeds),
        acceptance=pairs,
        best=_best(pairs, "ideal_speedup"),
        best_timed=_best(pairs, "timed_speedup"),
        window=_window(subject.tokenizer, lens, scope.num_window_tokens),
    )


def _exits(subject: Subject, lens: Lens, speeds: dict[int, float]) -> list[ExitRecord]:
    columns = zip(
        range(1, lens.num_layers + 1),
        lens.agreement("text"),
        lens.agreement("continuation"),
        lens.perplexity(),
        strict=True,
    )
    records = []
    for exit_layer, text, continuation, perplexity in columns:
        size = num_parameters(subject.model, exit_layer)
        records.append(
            ExitRecord(
                exit_layer=exit_layer,
                agreement_text=text,
                agreement_continuation=continuation,
                # JSON has neither infinity nor NaN.
                perplexity=perplexity if math.isfinite(perplexity or 0) else None,
                num_parameters=size,
                num_bytes=size * subject.checkpoint_dtype.itemsize,
                tokens_per_s=speeds.get(exit_layer),
            )
        )
    return records


def _pair(expectation: Expectation, speeds: dict[int, float]) -> PairRecord:
    timed_speedup = None
    if speeds:
        draft_cost = speeds[expectation.num_layers] / speeds[expectation.exit_layer]
        timed_speedup = expectation.speedup(draft_cost)
    return PairRecord(
        exit_layer=expectation.exit_layer,
        num_speculative_tokens=expectation.num_speculative_tokens,
        **asdict(expectation.counts),
        acceptance_rate=expectation.counts.acceptance_rate,
        mean_acceptance_length=expectation.counts.mean_acceptance_length,
        ideal_speedup=expectation.ideal_speedup,
        timed_speedup=timed_speedup,
    )


def _best(
    pairs: Sequence[PairRecord], by: Literal["ideal_speedup", "timed_speedup"]
) -> PairRecord | None:
    """Return the fastest pair, the smallest E and K on ties; None if no speed-up is known."""
    known = [pair for pair in pairs if getattr(pair, by) is not None]
    return max(
        known,
        key=lambda pair: (getattr(pair, by), -pair.exit_layer, -pair.num_speculative_tokens),
        default=None,
    )


def _window(tokenizer: PreTrainedTokenizerBase, lens: Lens, num_window_tokens: int) -> WindowRecord:
    """Record the last positions of the first prompt's trace whose prediction was generated."""
    trace = lens.traces[0]
    end = trace.num_prompt_tokens + trace.num_new_tokens - 1
    positions = range(max(end - num_window_tokens, 0), end)
    top1_ids = trace.top1_ids[:, positions.start : end]  # [num_layers, num_positions]

    def words(token_ids: torch.Tensor) -> list[str]:
        return [visible(tokenizer.decode([token_id])) for token_id in token_ids.tolist()]

    return WindowRecord(
        tokens=words(trace.token_ids[positions.start : end]),
        is_prompt=[position < trace.num_prompt_tokens for position in positions],
        top1=[words(row) for row in top1_ids],
        top1_probs=trace.top1_probs[:, positions.start : end].tolist(),
        agrees=(top1_ids == top1_ids[-1]).tolist(),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _versions() -> dict[str, str]:
    return {
        "layerskip_vllm": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
