"""Under Ray Serve LLM, our metrics are among Ray's, where vLLM's are.

Target: vllm.v1.metrics.ray_wrappers:RayPrometheusStatLogger._ec_connector_cls
Reason: vLLM's stat logger for Ray gives Ray's metric classes to every receiver but that of an
    encoder cache connector's stats, which receives our numbers.
How: Replaces the receiver's class by a subclass with Ray's metrics. Only in a process that is
    connected to Ray: the import costs every other one a second.
Upstream: 0011-speculative-method-metrics.patch
May go: When the oldest supported vLLM gives that receiver Ray's metrics.
"""

from __future__ import annotations

import sys

from vllm.distributed.ec_transfer.ec_connector.metrics import ECConnectorProm


def is_needed() -> bool:
    """By behaviour: in a process of a Ray cluster, the receiver counts with Prometheus's class."""
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
