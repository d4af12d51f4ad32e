"""A step's token counts and times, and their way to `/metrics`."""

from functools import partial
from types import NoneType, SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from layerskip_vllm.telemetry import GAUGES, StepMetrics, StepStats

ENGINES = {0: ["a model", "0"], 3: ["a model", "3"]}
METRIC_TYPES = (Counter, Gauge, Histogram)


def clock(*readings: float):
    return iter(readings).__next__


def test_a_step_is_split_where_its_tokens_are_sampled():
    stats = StepStats(9, clock(10.0, 10.5, 10.75))
    stats.num_resumed_tokens = 4
    stats.sampled(num_verified=3)
    stats.drafted()
    assert stats.as_dict() == {
        "num_resumed_tokens": 4,
        "num_fresh_tokens": 5,
        "verify_time_seconds": 0.5,
        "draft_time_seconds": 0.25,
    }


def test_a_step_that_verifies_nothing_has_no_time_for_it():
    stats = StepStats(7, clock(0.0, 1.0, 3.0))
    stats.sampled(num_verified=0)
    stats.drafted()
    assert stats.as_dict() == {
        "num_resumed_tokens": 0,
        "num_fresh_tokens": 7,
        "draft_time_seconds": 2.0,
    }


def test_a_step_that_drafts_nothing_has_no_time_for_it():
    stats = StepStats(2, clock(0.0, 1.0))
    stats.sampled(num_verified=1)
    assert "draft_time_seconds" not in stats.as_dict()


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def metrics(registry):
    own = {cls: partial(cls, registry=registry) for cls in METRIC_TYPES}
    return StepMetrics(
        own, ["model_name", "engine"], ENGINES, exit_labels=[(4, 64), (8, 64), (4, 0)]
    )


def reader(registry, engine: str):
    labels = {"model_name": "a model", "engine": engine}
    return lambda name, **more: registry.get_sample_value(f"vllm:layerskip_{name}", labels | more)


def test_steps_add_up_engine_by_engine(registry, metrics):
    for resumed, fresh in ((4, 5), (1, 0)):
        counted = {"num_resumed_tokens": resumed, "num_fresh_tokens": fresh}
        metrics.observe({"layerskip": counted}, 3)
    of_engine_3, of_engine_0 = reader(registry, "3"), reader(registry, "0")
    assert of_engine_3("num_resumed_tokens_total") == 5
    assert of_engine_3("num_fresh_tokens_total") == 5
    assert of_engine_0("num_resumed_tokens_total") == 0


def test_only_recorded_times_are_observed(registry, metrics):
    tokens = {"num_resumed_tokens": 0, "num_fresh_tokens": 1}
    metrics.observe({"layerskip": tokens | {"draft_time_seconds": 0.3}})
    metrics.observe({"layerskip": tokens | {"draft_time_seconds": 0.2}})
    metrics.observe({"layerskip": tokens})
    read = reader(registry, "0")
    assert read("draft_time_seconds_count") == 2
    assert read("draft_time_seconds_sum") == pytest.approx(0.5)
    assert read("verify_time_seconds_count") == 0


def test_every_number_of_a_step_has_a_metric(registry, metrics):
    stats = StepStats(1)
    stats.sampled(num_verified=1)
    stats.drafted()
    metrics.observe({"layerskip": stats.as_dict()})
    families = {family.name.removeprefix("vllm:layerskip_") for family in registry.collect()}
    of_the_scheduler = {*GAUGES, "exit_match_rate"}
    assert families == set(stats.as_dict()) | of_the_scheduler


def test_an_observing_step_tells_the_scheduler_what_it_has_counted():
    stats = StepStats(3)
    assert "exit_matches" not in stats.as_dict()
    stats.exit_matches = [[3, 1], [3, 2]]
    assert stats.as_dict()["exit_matches"] == [[3, 1], [3, 2]]


def test_gauges_show_the_last_choice_and_each_exits_match_rate(registry, metrics):
    tokens = {"num_resumed_tokens": 0, "num_fresh_tokens": 1}
    for exit_layer, rates in ((4, [0.5, 0.75, 0.6]), (8, [0.25, 1.0, 0.75])):
        choice = {"exit_layer": exit_layer, "num_drafts": exit_layer - 2, "exit_match_rate": rates}
        choice["draft_vocab_size"] = 64
        metrics.observe({"layerskip": tokens | choice}, 3)
    metrics.observe({"layerskip": tokens}, 3)
    read = reader(registry, "3")
    assert (read("exit_layer"), read("num_drafts"), read("draft_vocab_size")) == (8, 6, 64)
    rates = [
        read("exit_match_rate", exit_layer=layer, draft_vocab_size=size)
        for layer, size in (("4", "64"), ("8", "64"), ("4", "0"))
    ]
    assert rates == [0.25, 1.0, 0.75]
    idle = reader(registry, "0")
    assert idle("exit_match_rate", exit_layer="4", draft_vocab_size="64") == 0


def test_stats_survive_serialization_to_the_front_end():
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.metrics.stats import SchedulerStats
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    stats = StepStats(9)
    stats.num_resumed_tokens = 4
    stats.sampled(num_verified=3)
    sent = {"layerskip": stats.as_dict()}
    outputs = EngineCoreOutputs(scheduler_stats=SchedulerStats(ec_connector_stats=sent))
    received = MsgpackDecoder(EngineCoreOutputs).decode(MsgpackEncoder().encode(outputs))
    assert received.scheduler_stats.ec_connector_stats == sent


@pytest.fixture
def receivers():
    """vLLM's two receivers of a connector's stats, with the plugin registered."""
    from vllm.distributed.ec_transfer.ec_connector.metrics import (
        ECConnectorLogging,
        ECConnectorProm,
    )

    from layerskip_vllm import plugin

    plugin.register()
    return ECConnectorProm, ECConnectorLogging


@pytest.mark.parametrize("is_ours", [True, False])
def test_metrics_are_received_under_self_speculation_only(receivers, registry, is_ours):
    ours = SimpleNamespace(layerskip=SimpleNamespace(exit_labels=[(8, 0)]))
    config = ours if is_ours else SimpleNamespace()
    vllm_config = SimpleNamespace(ec_transfer_config=None, speculative_config=config)
    own = {f"_{cls.__name__.lower()}_cls": partial(cls, registry=registry) for cls in METRIC_TYPES}
    receiver_cls = type("Receiver", (receivers[0],), own)
    receiver = receiver_cls(vllm_config, ["model_name", "engine"], ENGINES)
    assert isinstance(receiver.prom_metrics, StepMetrics if is_ours else NoneType)
    counted = {family.type for family in registry.collect()}
    assert counted == ({"counter", "gauge", "histogram"} if is_ours else set())


def test_the_log_omits_only_our_stats(receivers):
    log = receivers[1](None)
    log.observe({"layerskip": {"num_fresh_tokens": 1}})
    assert log.transfer_stats_accumulator is None
    with pytest.raises(AttributeError, match="connector_cls"):
        log.observe({"of a connector": 1})  # vLLM's own error without a connector
