"""Our workers' counts become Prometheus metrics.

Target: vllm.distributed.ec_transfer.ec_connector.metrics:ECConnectorProm.__init__
Reason: Numbers that only a worker knows (tokens resumed and fresh, time spent drafting and
    verifying) belong at `/metrics`. Only a connector's stats carry arbitrary numbers from a worker
    to there, through `ECConnectorOutput` in `ModelRunnerOutput`, `SchedulerStats` and the stat
    loggers. `self:E` refuses encoder cache transfer, so the place of its connector's stats is free.
    The other ways do not work. `SpecDecodingStats` has no room. A plugin of the group
    `vllm.stat_logger_plugins` gets the same `SchedulerStats`, and would turn statistics on in
    engines without `self:E`. Prometheus's multiprocess mode changes vLLM's own metrics and does not
    reach beyond the host.
How: Calls the original, which registers nothing without a connector. Under self-speculation, then
    sets `prom_metrics` to a `layerskip_vllm.telemetry.StepMetrics`.
Upstream: 0011-speculative-method-metrics.patch
May go: When the oldest supported vLLM has a place for a worker's own numbers.
"""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram
from vllm.config import VllmConfig
from vllm.distributed.ec_transfer.ec_connector.metrics import ECConnectorProm

from layerskip_vllm.compat.releases import is_supported_vllm
from layerskip_vllm.compat.wrapping import wrap
from layerskip_vllm.telemetry import StepMetrics


def is_needed() -> bool:
    """By release: no vLLM knows our metrics."""
    return is_supported_vllm()


def install() -> None:
    """Wrap the constructor of the receiver of a connector's stats."""
    wrap(ECConnectorProm, "__init__", _receive_step_stats)


def _receive_step_stats(
    original: Callable[..., None],
    receiver: ECConnectorProm,
    vllm_config: VllmConfig,
    labelnames: list[str],
    per_engine_labelvalues: dict[int, list[object]],
) -> None:
    original(receiver, vllm_config, labelnames, per_engine_labelvalues)
    if hasattr(vllm_config.speculative_config, "layerskip"):
        receiver.prom_metrics = StepMetrics(
            {
                Counter: receiver._counter_cls,
                Gauge: receiver._gauge_cls,
                Histogram: receiver._histogram_cls,
            },
            labelnames,
            per_engine_labelvalues,
            vllm_config.speculative_config.layerskip.exit_labels,
        )
