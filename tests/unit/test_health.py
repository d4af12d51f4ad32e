"""The one warning about drafts that do not pay."""

import logging

import pytest

from layerskip_vllm.config import LayerSkipConfig
from layerskip_vllm.scheduling.health import AcceptanceMonitor

BREAK_EVEN = 0.25  # self:6 of 24 layers


@pytest.fixture
def monitor():
    return AcceptanceMonitor(LayerSkipConfig(exit_layer=6, num_layers=24, adaptive=False))


@pytest.fixture
def warnings(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    caplog.set_level(logging.WARNING)
    return caplog


def test_one_warning_names_the_rate_and_the_remedy(monitor, warnings):
    for _ in range(3000):
        monitor.observe(num_drafted=4, num_accepted=0)
    (record,) = warnings.records
    message = record.getMessage()
    assert "0.0%" in message
    assert "25.0%" in message
    assert "self:6" in message
    assert "costs more than it yields" in message
    assert "checkpoint trained for early exit" in message


def test_with_adaptive_k_the_warning_says_little_is_drafted(warnings):
    AcceptanceMonitor(LayerSkipConfig(exit_layer=6, num_layers=24)).observe(1000, 0)
    assert "little is drafted, and little gained" in warnings.text


def test_no_warning_before_1000_drafts(monitor, warnings):
    monitor.observe(num_drafted=999, num_accepted=0)
    assert not warnings.records
    monitor.observe(num_drafted=1, num_accepted=0)
    assert len(warnings.records) == 1


def test_no_warning_when_drafts_pay(monitor, warnings):
    monitor.observe(num_drafted=1000, num_accepted=int(1000 * BREAK_EVEN))
    assert not warnings.records
    assert monitor.acceptance_rate == BREAK_EVEN
