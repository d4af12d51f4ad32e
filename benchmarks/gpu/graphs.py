"""Launches, time by phase and synchronizations of a decode step on the GPU."""

from __future__ import annotations

import functools
import re
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.gpu.records import Launches, Phases, SyncCheck
from benchmarks.stopwatch import Method, replaced

if TYPE_CHECKING:
    from torch.autograd.profiler_util import FunctionEventAvg

    from benchmarks.gpu.records import Emit
    from layerskip_vllm.measure.engine import VllmEngine

Prompts = Sequence[Sequence[int]]

NUM_STEPS = 16
"""Decode steps that are observed."""
NUM_STEPS_BEFORE = 8
"""Steps that run first: kernels compile in them."""
PHASE_BATCH_SIZES = (1, 16)

CUDA_CALL = re.compile(r"cu(da)?(?=[A-Z])\w*(Launch|Memcpy|Memset|Synchronize)")


def look_inside(engine: VllmEngine, model: str, system: str, prompts: Prompts, emit: Emit) -> None:
    """Emit everything: the profiler slows what follows, and the last check can break the engine."""
    for batch_size in PHASE_BATCH_SIZES:
        emit(measure_phases(engine, model, system, prompts[:batch_size]))
    emit(measure_launches(engine, model, system, prompts[:1]))
    for record in check_synchronization(engine, model, system, prompts):
        emit(record)


@contextmanager
def decoding(engine: VllmEngine, prompts: Prompts) -> Generator[Callable[[], None]]:
    """Requests that all decode; the block gets a function that runs NUM_STEPS of their steps."""
    # No request ends within the observed steps, even if each drafts 8 tokens and all are accepted.
    max_tokens = 9 * (NUM_STEPS_BEFORE + 2 * NUM_STEPS)
    req_ids = engine.add(prompts, max_tokens)
    engine.step_until_all_decode(req_ids)
    for _ in range(NUM_STEPS_BEFORE):
        engine.step()

    def run_steps() -> None:
        for _ in range(NUM_STEPS):
            engine.step()

    yield run_steps
    while engine.engine.has_unfinished_requests():
        engine.step()


def measure_launches(engine: VllmEngine, model: str, system: str, prompts: Prompts) -> Launches:
    """Count the launches, copies and waits that the CUDA runtime and driver execute."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with decoding(engine, prompts) as run_steps:
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            run_steps()
            torch.cuda.synchronize()
    calls, num_device_events, device_us = count_events(profiler.key_averages())
    calls["cudaDeviceSynchronize"] -= 1  # our own, at the end
    return Launches(
        model=model,
        system=system,
        batch_size=len(prompts),
        num_steps=NUM_STEPS,
        calls={name: count / NUM_STEPS for name, count in calls.most_common() if count > 0},
        device_events=num_device_events / NUM_STEPS,
        device_ms=device_us / 1000 / NUM_STEPS,
    )


def count_events(events: Iterable[FunctionEventAvg]) -> tuple[Counter[str], int, float]:
    """Calls by CUDA function; number and microseconds of kernels and copies on the device.

    An operation of the host also carries its kernels' time, and an annotation that of all kernels
    inside it: neither counts.
    """
    calls: Counter[str] = Counter()
    num_device_events, device_us = 0, 0.0
    for event in events:
        if event.device_type.name == "CPU":
            if CUDA_CALL.match(event.key):
                calls[event.key] += event.count
        elif not getattr(event, "is_user_annotation", False):
            num_device_events += event.count
            device_us += event.self_device_time_total
    return calls, num_device_events, device_us


class PhaseTimer:
    """Milliseconds of methods on the host and, by CUDA events, on the device."""

    def __init__(self) -> None:
        self.host_ms: defaultdict[str, float] = defaultdict(float)
        self._events: list[tuple[str, object, object]] = []

    def timed(self, method, label: str):  # type: ignore[no-untyped-def]
        """The method, timed."""
        import torch

        @functools.wraps(method)
        def timed(*args, **kwargs):  # type: ignore[no-untyped-def]
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            started = time.perf_counter()
            before.record()
            result = method(*args, **kwargs)
            after.record()
            self.host_ms[label] += 1000 * (time.perf_counter() - started)
            self._events.append((label, before, after))
            return result

        return timed

    def device_ms(self) -> dict[str, float]:
        """By label; the device must have finished."""
        total: defaultdict[str, float] = defaultdict(float)
        for label, before, after in self._events:
            total[label] += before.elapsed_time(after)  # type: ignore[attr-defined]
        return dict(total)


def measure_phases(engine: VllmEngine, model: str, system: str, prompts: Prompts) -> Phases:
    """Time the phases of decode steps."""
    import torch

    timer = PhaseTimer()
    with decoding(engine, prompts) as run_steps:
        torch.cuda.synchronize()
        started = time.perf_counter()
        with replaced(phases(engine), timer.timed):
            run_steps()
        torch.cuda.synchronize()
        step_ms = 1000 * (time.perf_counter() - started) / NUM_STEPS

    def per_step(total: dict[str, float]) -> dict[str, float]:
        return {label: ms / NUM_STEPS for label, ms in total.items()}

    return Phases(
        model=model,
        system=system,
        batch_size=len(prompts),
        num_steps=NUM_STEPS,
        step_ms=step_ms,
        host_ms=per_step(timer.host_ms),
        device_ms=per_step(timer.device_ms()),
    )


def phases(engine: VllmEngine) -> list[Method]:
    """The methods of either model runner that are the parts of a step."""
    runner = engine.runner
    speculator = getattr(runner, "speculator", None)
    names = {"_model_forward": "verify", "_sample": "sample", "propose_draft_token_ids": "propose"}
    if hasattr(runner, "model_state"):  # V2; its execute_model also prepares the batch
        names = {"execute_model": "verify", "sample": "sample"}
    methods: list[Method] = [(runner, name, label) for name, label in names.items()]
    if hasattr(speculator, "propose"):
        methods.append((speculator, "propose", "propose"))
    return methods


def own_methods(engine: VllmEngine) -> list[Method]:
    """Our speculator's `propose`, and what our model state defines; none in other systems."""
    runner = engine.runner
    state, speculator = getattr(runner, "model_state", None), getattr(runner, "speculator", None)
    if not type(state).__module__.startswith("layerskip_vllm"):
        return []
    public = [n for n, v in vars(type(state)).items() if callable(v) and not n.startswith("_")]
    return [(speculator, "propose", "propose"), *((state, name, name) for name in public)]


def check_synchronization(
    engine: VllmEngine, model: str, system: str, prompts: Prompts
) -> Generator[SyncCheck]:
    """Run decode steps, then steps that admit a request, with PyTorch's check for synchronization.

    It stops at the first error, which may leave the engine unusable.
    """
    methods = own_methods(engine)
    if not methods:
        return

    def admit_and_decode() -> None:
        engine.step_until_all_decode(engine.add(prompts[1:2], max_tokens=NUM_STEPS))

    for steps in ("decode", "prefill and decode"):
        calls: Counter[str] = Counter()
        error = None
        try:
            with (
                decoding(engine, prompts[:1]) as run_steps,
                replaced(methods, functools.partial(guarded, calls=calls)),
            ):
                (run_steps if steps == "decode" else admit_and_decode)()
        except RuntimeError:
            error = "\n".join(traceback.format_exc().strip().splitlines()[-8:])
        yield SyncCheck(model, system, steps, dict(calls), error)
        if error is not None:
            return


def guarded(method, label: str, calls: Counter[str]):  # type: ignore[no-untyped-def]
    """The method, with an error where the host waits for the device inside it."""
    import torch

    @functools.wraps(method)
    def strict(*args, **kwargs):  # type: ignore[no-untyped-def]
        calls[label] += 1
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            return method(*args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    return strict
