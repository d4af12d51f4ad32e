"""Drive a vLLM engine in this process, step by step through `LLMEngine.step`.

The functions look into any `vllm.LLM`; tests use them on engines of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING

from layerskip_vllm.measure.decoding import Decoding, DraftCounts, Recording

if TYPE_CHECKING:
    from torch import nn
    from vllm import LLM, RequestOutput
    from vllm.outputs import CompletionOutput
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner


def model_runner(llm: LLM) -> GPUModelRunner:
    """The model runner of an engine in this process."""
    return _engine_core(llm).model_executor.driver_worker.worker.model_runner


def scheduler(llm: LLM) -> Scheduler:
    """The scheduler of an engine in this process."""
    return _engine_core(llm).scheduler


def _engine_core(llm: LLM) -> EngineCore:
    return llm.llm_engine.engine_core.engine_core


def shut_down(llm: LLM) -> None:
    """End an engine; if it runs in this process, free its memory for the next one."""
    llm.llm_engine.engine_core.shutdown()


class VllmEngine:
    """An engine that decodes requests and records every step."""

    def __init__(self, arguments: Mapping[str, object]) -> None:
        """Load the model.

        Args:
            arguments: What `vllm.LLM` takes.
        """
        from vllm import LLM

        speculates = any(name.startswith("spec") for name in arguments)
        # Per-request acceptance needs this; vLLM refuses it without speculation.
        extra = {"per_request_spec_decode_metrics": "detailed"} if speculates else {}
        self.llm = LLM(**arguments, **extra, disable_log_stats=False)
        self.engine = self.llm.llm_engine
        self._request_numbers = count()

    @property
    def runner(self) -> GPUModelRunner:
        """The model runner; the engine runs in this process."""
        return model_runner(self.llm)

    @property
    def scheduler(self) -> Scheduler:
        """The scheduler; the engine runs in this process."""
        return scheduler(self.llm)

    @property
    def model(self) -> nn.Module:
        """The target."""
        return self.runner.model

    def kv_cache_tokens(self) -> int:
        """Tokens whose keys and values fit the budget, as the scheduler counts them."""
        cache_config = self.engine.vllm_config.cache_config
        return cache_config.num_gpu_blocks * cache_config.block_size

    def add(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        temperature: float = 0,
        extra_args: Mapping[str, object] | None = None,
    ) -> list[str]:
        """Add requests that do not stop early; returns their ids.

        Above temperature 0 each has a seed, its row, so that every system can give the same text.
        `extra_args` holds the options of each request.
        """
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        req_ids = []
        for row, prompt in enumerate(prompts):
            params = SamplingParams(
                temperature=temperature,
                seed=row if temperature else None,
                max_tokens=max_tokens,
                ignore_eos=True,
                detokenize=False,
                output_kind=RequestOutputKind.DELTA,
                extra_args=None if extra_args is None else dict(extra_args),
            )
            req_id = str(next(self._request_numbers))
            self.engine.add_request(req_id, tokens_input(list(prompt)), params)
            req_ids.append(req_id)
        return req_ids

    def step(self) -> list[RequestOutput]:
        """Schedule, run and sample once; returns the new tokens of each request that got any."""
        return self.engine.step()

    def step_until_all_decode(self, req_ids: Iterable[str]) -> None:
        """Prefill: until each request has a token."""
        waiting = set(req_ids)
        while waiting:
            waiting -= {output.request_id for output in self.step()}

    def abort(self, req_ids: Sequence[str]) -> None:
        """End requests."""
        self.engine.abort_request(list(req_ids))

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        temperature: float = 0,
        after_step: Callable[[], object] = lambda: None,
        extra_args: Mapping[str, object] | None = None,
    ) -> Decoding:
        """Decode all prompts at once, to exactly `max_tokens` tokens each."""
        recording = Recording(len(prompts))
        req_ids = self.add(prompts, max_tokens, temperature, extra_args)
        rows = {req_id: row for row, req_id in enumerate(req_ids)}
        finished: dict[int, RequestOutput] = {}
        while self.engine.has_unfinished_requests():
            outputs = self.step()
            recording.add_step(
                {rows[output.request_id]: output.outputs[0].token_ids for output in outputs}
            )
            finished |= {rows[output.request_id]: output for output in outputs if output.finished}
            after_step()
        stats = [finished[row].metrics for row in range(len(prompts))]
        return Decoding(
            recording.step_s,
            recording.num_new_tokens,
            recording.token_ids,
            [s.first_token_latency for s in stats],
            [(s.last_token_ts - s.first_token_ts) / (max_tokens - 1) for s in stats],
            sum((_counts(output.outputs[0]) for output in finished.values()), DraftCounts()),
        )

    def close(self) -> None:
        """End the engine."""
        shut_down(self.llm)


def _counts(completion: CompletionOutput) -> DraftCounts:
    """Acceptance of a finished request.

    vLLM's metrics, such as `vllm:spec_decode_num_accepted_tokens`, count the same events in
    `Scheduler.update_from_output`, but add up the engines of a process.
    """
    metrics = completion.spec_decode_metrics
    if metrics is None:
        return DraftCounts()
    accepted, drafted = metrics.per_step_accepted, metrics.per_step_drafted
    return DraftCounts(
        num_drafts=len(drafted),
        num_drafted=sum(drafted),
        num_accepted=sum(accepted),
        num_cut_short=sum(a < d for a, d in zip(accepted, drafted, strict=True)),
    )
