"""The report's section on CUDA graphs, launches, phases and synchronizations."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.gpu.records import EngineStart, Launches, Phases, Record, SyncCheck, of_kind
from benchmarks.markdown import NOT_MEASURED, table

MIB = 1 << 20


def inside(records: Sequence[Record]) -> list[str]:
    """All tables that have rows."""
    parts = []
    if starts := of_kind(records, EngineStart):
        parts += ["### Engines and captured graphs", _starts(starts)]
    if launches := of_kind(records, Launches):
        parts += [
            "### Launches per step",
            "PyTorch's profiler, decode steps only; a step of `self:E` is a whole cycle. Kernels "
            "inside a graph count on the device, not as calls.",
            _launches(launches),
        ]
    if phases := of_kind(records, Phases):
        parts += [
            "### Milliseconds by phase",
            "Host: from call to return. Device: between CUDA events around the call, its waiting "
            "for the host included.",
            _phases(phases),
        ]
    if checks := of_kind(records, SyncCheck):
        parts += [
            "### Synchronizations in our own methods",
            'Under `torch.cuda.set_sync_debug_mode("error")`.',
            *map(_sync_check, checks),
        ]
    return parts


def _starts(records: Sequence[EngineStart]) -> str:
    return table(
        [
            "engine",
            "runner",
            "attention",
            "scheduling",
            "graph mode",
            "graphs",
            "FULL graphs",
            "MiB of graphs",
            "start s",
        ],
        [
            [
                f"{record.job}: {record.engine}",
                record.runner.removeprefix("vllm.v1.worker."),
                record.attention_backend,
                "async" if record.async_scheduling else "sync",
                record.cudagraph_mode,
                str(record.num_graphs),
                ", ".join(f"{owner} {n}" for owner, n in record.full_graphs.items())
                or NOT_MEASURED,
                NOT_MEASURED if record.graph_bytes is None else f"{record.graph_bytes / MIB:.0f}",
                f"{record.start_s:.1f}",
            ]
            for record in records
        ],
    )


def _launches(records: Sequence[Launches]) -> str:
    return table(
        ["system", "batch", "kernels and copies on the device", "device ms", "calls of the host"],
        [
            [
                f"{record.model} {record.system}",
                str(record.batch_size),
                f"{record.device_events:.1f}",
                f"{record.device_ms:.3f}",
                ", ".join(f"{name} {count:.1f}" for name, count in record.calls.items()),
            ]
            for record in records
        ],
    )


def _phases(records: Sequence[Phases]) -> str:
    labels = ("verify", "sample", "propose")

    def cell(record: Phases, label: str) -> str:
        if label not in record.host_ms:
            return NOT_MEASURED
        return f"{record.host_ms[label]:.3f} / {record.device_ms.get(label, 0.0):.3f}"

    return table(
        ["system", "batch", "step", *(f"{label}, host / device" for label in labels)],
        [
            [
                f"{record.model} {record.system}",
                str(record.batch_size),
                f"{record.step_ms:.3f}",
                *(cell(record, label) for label in labels),
            ]
            for record in records
        ],
    )


def _sync_check(record: SyncCheck) -> str:
    calls = ", ".join(f"{name} {count}" for name, count in record.calls.items()) or "no call"
    line = f"- {record.model} {record.system}, {record.steps}: calls: {calls}: "
    if record.error is None:
        return line + "none"
    return line + f"**an error**\n\n```\n{record.error}\n```"
