"""`python -m benchmarks.communication`: the traffic of tensor-parallel ranks while they decode.

Bytes and calls depend on the model's shape, K and the acceptance, not on the machine. One run of
each system is enough, and the benchmark times nothing. The ranks are two processes on this host.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.collective_trace import CollectiveTrace, reset_trace, start_trace, trace_of
from benchmarks.markdown import table
from benchmarks.models import MODELS, PreparedModel
from benchmarks.systems import System
from benchmarks.systems import table as systems_of

LOCAL_ARGMAX = "self, local argmax"
COMPARED = ("plain", "self", LOCAL_ARGMAX, "self-recompute", "draft_model")


@dataclass(frozen=True)
class Communication:
    """The traffic of one rank of a system while it decodes.

    Attributes:
        tokens: Output tokens of all requests.
        acceptance_rate: Accepted / drafted; None if nothing was drafted.
    """

    trace: CollectiveTrace
    tokens: int
    acceptance_rate: float | None


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.communication",
        description="Bytes and calls that tensor-parallel ranks exchange per output token.",
    )
    parser.add_argument("--model", choices=MODELS, default="trained", help="default: trained")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="requests at a time")
    parser.add_argument("--num-speculative-tokens", type=int, default=4, metavar="K")
    args = parser.parse_args(argv)
    # vLLM's CPU ranks share memory only if each is bound to its own core.
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0|1"
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    model = MODELS[args.model].prepare()
    systems = compared_systems(model, args.num_speculative_tokens)
    found = {system.name: measure(model, system, args.batch_size) for system in systems.values()}
    print(f"{model.description}; {args.batch_size} requests, K = {args.num_speculative_tokens}\n")
    print(markdown(found))
    return 0


def compared_systems(model: PreparedModel, num_speculative_tokens: int) -> dict[str, System]:
    """The systems by name, with two ranks each; eager, since compilation changes no collective."""
    systems = systems_of(model, num_speculative_tokens, eager=True)
    local_argmax = dict(systems["self"].arguments)
    local_argmax["speculative_config"] = {"use_local_argmax_reduction": True}
    systems[LOCAL_ARGMAX] = System(LOCAL_ARGMAX, "vllm", local_argmax)
    return {
        name: System(name, "vllm", {**systems[name].arguments, "tensor_parallel_size": 2})
        for name in COMPARED
    }


def measure(model: PreparedModel, system: System, batch_size: int) -> Communication:
    """Decode the model's first prompts; start counting once all requests have a token.

    The drafts proposed with that token are not counted. `self:E` drafts nothing after the last one.
    """
    from layerskip_vllm.measure.engine import VllmEngine

    engine = VllmEngine(system.arguments)
    try:
        engine.llm.collective_rpc(start_trace)
        req_ids = engine.add(model.prompts[:batch_size], model.max_tokens)
        engine.step_until_all_decode(req_ids)
        engine.llm.collective_rpc(reset_trace)
        tokens = accepted = drafted = 0
        while engine.engine.has_unfinished_requests():
            for output in engine.step():
                (completion,) = output.outputs
                tokens += len(completion.token_ids)
                metrics = completion.spec_decode_metrics if output.finished else None
                accepted += sum(metrics.per_step_accepted) if metrics else 0
                drafted += sum(metrics.per_step_drafted) if metrics else 0
        first, second = engine.llm.collective_rpc(trace_of)
        assert first == second, "ranks must call the same collectives"
        return Communication(first, tokens, accepted / drafted if drafted else None)
    finally:
        engine.close()


def markdown(found: Mapping[str, Communication]) -> str:
    """A Markdown table with one row per system."""
    header = ["system", "acceptance rate"]
    header += ["all-reduces per token", "their KiB", "gathers per token", "their KiB"]
    return table(header, [_row(name, communication) for name, communication in found.items()])


def _row(name: str, communication: Communication) -> list[str]:
    rate, tokens = communication.acceptance_rate, communication.tokens
    row = [name, "-" if rate is None else f"{rate:.2f}"]
    for collectives in (["all_reduce"], ["all_gather", "gather"]):
        calls = sum(communication.trace.num_calls[name] for name in collectives)
        num_bytes = sum(communication.trace.num_bytes[name] for name in collectives)
        row += [f"{calls / tokens:.1f}", f"{num_bytes / tokens / 1024:.2f}"]
    return row


if __name__ == "__main__":
    raise SystemExit(main())
