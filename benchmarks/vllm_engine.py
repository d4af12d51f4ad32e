"""A vLLM engine in this process, driven step by step through `LLMEngine.step`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING

from benchmarks.decoding import Decoding, DraftCounts, Recording

if TYPE_CHECKING:
    from torch import nn
    from vllm import RequestOutput
    from vllm.outputs import CompletionOutput
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner


class VllmEngine:
    """One system of vLLM's."""

    def __init__(self, arguments: Mapping[str, object]) -> None:
        """Load the model and be ready.

        Args:
            arguments: What `vllm.LLM` takes.
        """
        from vllm import LLM

        speculates = any(name.startswith("spec") for name in arguments)
        # Per-request acceptance needs this; it is refused where nothing speculates.
        extra = {"per_request_spec_decode_metrics": "detailed"} if speculates else {}
        self.llm = LLM(**arguments, **extra, disable_log_stats=False)
        self.engine = self.llm.llm_engine
        self._request_numbers = count()

    @property
    def runner(self) -> GPUModelRunner:
        """The model runner; the engine runs in this process."""
        executor = self.engine.engine_core.engine_core.model_executor
        return executor.driver_worker.worker.model_runner

    @property
    def model(self) -> nn.Module:
        """The target."""
        return self.runner.model

    def kv_cache_tokens(self) -> int:
        """Tokens whose keys and values fit the budget, as the scheduler counts them."""
        cache_config = self.engine.vllm_config.cache_config
        return cache_config.num_gpu_blocks * cache_config.block_size

    def add(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[str]:
        """Add greedy requests that do not stop early; returns their ids."""
        from vllm import SamplingParams
        from vllm.inputs.engine import tokens_input
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=0,
            max_tokens=max_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        req_ids = []
        for prompt in prompts:
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
        after_step: Callable[[], object] = lambda: None,
    ) -> Decoding:
        """Decode all prompts at once, greedily, to exactly `max_tokens` tokens each."""
        recording = Recording(len(prompts))
        rows = {req_id: row for row, req_id in enumerate(self.add(prompts, max_tokens))}
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
        """End the engine; in one process with others, its memory is free again afterwards."""
        self.engine.engine_core.shutdown()


def _counts(completion: CompletionOutput) -> DraftCounts:
    """Acceptance of a finished request.

    vLLM counts it where it counts `vllm:spec_decode_num_accepted_tokens` and its like
    (`Scheduler.update_from_output`), but per request and, unlike these, also where several engines
    share a process.
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
