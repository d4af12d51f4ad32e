"""vLLM's periodic log omits our workers' counts.

Target: vllm.distributed.ec_transfer.ec_connector.metrics:ECConnectorLogging.observe
Reason: Without a connector, the method fails on any stats (`connector_cls` is not set), and the
    front end fails with it.
How: Skips our stats, and calls the original for others.
Upstream: 0011-speculative-method-metrics.patch
May go: When the oldest supported vLLM ignores stats without a connector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vllm.distributed.ec_transfer.ec_connector.metrics import ECConnectorLogging

from layerskip_vllm.compat.wrapping import wrap
from layerskip_vllm.config import OPTIONS_KEY


def is_needed() -> bool:
    """By behaviour: the log fails on our stats."""
    try:
        ECConnectorLogging(None).observe({OPTIONS_KEY: {}})
    except (AssertionError, AttributeError):
        return True
    return False


def install() -> None:
    """Wrap the method that takes a step's stats."""
    wrap(ECConnectorLogging, "observe", _observe)


def _observe(
    original: Callable[..., None], connector_logging: ECConnectorLogging, stats: Mapping
) -> None:
    if OPTIONS_KEY not in stats:
        original(connector_logging, stats)
