"""Our metrics among Ray's, where vLLM's are (`vllm/v1/metrics/ray_wrappers.py`): Ray Serve LLM."""

from __future__ import annotations

import sys

from vllm.distributed.ec_transfer.ec_connector.metrics import ECConnectorProm


def report_to_ray() -> None:
    """Let the stat logger for Ray give its metric classes to the receiver of our numbers too.

    Only in a process of a Ray cluster: the import costs every other one a second.
    """
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    from vllm.v1.metrics import ray_wrappers

    class RayECConnectorProm(ECConnectorProm):
        _gauge_cls = ray_wrappers.RayGaugeWrapper
        _counter_cls = ray_wrappers.RayCounterWrapper
        _histogram_cls = ray_wrappers.RayHistogramWrapper

    ray_wrappers.RayPrometheusStatLogger._ec_connector_cls = RayECConnectorProm
