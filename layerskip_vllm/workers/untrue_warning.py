"""A warning of vLLM's that does not hold for `self:E`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from vllm.v1.sample.logits_processor import build_logitsprocs


@contextmanager
def without_untrue_warning() -> Iterator[None]:
    """Silence what vLLM's V1 runner says of speculation when it is made: that `min_p` and
    `logit_bias` have no effect. Here they have.
    """
    logger = logging.getLogger(build_logitsprocs.__module__)
    logger.addFilter(_is_true)
    try:
        yield
    finally:
        logger.removeFilter(_is_true)


def _is_true(record: logging.LogRecord) -> bool:
    return "won't work with speculative decoding" not in record.getMessage()
