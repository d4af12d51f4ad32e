"""Under Ray Serve LLM, our metrics appear in Ray's, as vLLM's do.

Target: vllm.v1.metrics.ray_wrappers:RayPrometheusStatLogger._ec_connector_cls
Reason: vLLM's stat logger for Ray gives Ray's metric classes to every receiver except one: the
    receiver of an encoder cache connector's stats, which gets our numbers.
How: Replaces that receiver's class with a subclass that uses Ray's metrics, but only in a process
    that is connected to Ray. In any other process the import would cost a second.
Upstream: 0011-speculative-method-metrics.patch
May go: When the oldest supported vLLM gives that receiver Ray's metrics.
"""

from __future__ import annotations

import sys

from vllm.distributed.ec_transfer.ec_connector.metrics import ECConnectorProm


def is_needed() -> bool:
    """By behaviour: in a process connected to Ray, the receiver still uses Prometheus's classes."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return False
    from vllm.v1.metrics import ray_wrappers

    receiver = ray_wrappers.RayPrometheusStatLogger._ec_connector_cls
    return receiver._counter_cls is not ray_wrappers.RayCounterWrapper


def install() -> None:
    """Give the stat logger for Ray a receiver with Ray's metrics."""
    from vllm.v1.metrics import ray_wrappers

    class RayECConnectorProm(ECConnectorProm):
        _gauge_cls = ray_wrappers.RayGaugeWrapper
        _counter_cls = ray_wrappers.RayCounterWrapper
        _histogram_cls = ray_wrappers.RayHistogramWrapper

    ray_wrappers.RayPrometheusStatLogger._ec_connector_cls = RayECConnectorProm
