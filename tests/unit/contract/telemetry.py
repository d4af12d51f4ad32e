"""Telemetry: `telemetry.py`, and the path of a worker's numbers to `/metrics`."""

from tests.unit.contract.expectations import Calls, Has, Reads, Takes
from tests.unit.contract.runner_v1 import RUNNER
from tests.unit.contract.scheduling import SCHEDULER

EC_METRICS = "vllm.distributed.ec_transfer.ec_connector.metrics"
STAT_LOGGERS = "vllm.v1.metrics.loggers"

EXPECTATIONS = (
    Takes(
        f"{RUNNER}.sample_tokens",
        "Overridden, original called; adds our numbers to the output.",
        positional=("grammar_output",),
    ),
    Has(
        "vllm.v1.outputs:ModelRunnerOutput",
        "Carries a step's numbers.",
        ("req_ids", "ec_connector_output"),
    ),
    Takes(
        "vllm.v1.outputs:ECConnectorOutput",
        "Carries the numbers to the scheduler.",
        keyword=("ec_connector_stats",),
    ),
    Takes(f"{EC_METRICS}:ECConnectorStats", "Holds the numbers by name.", positional=("data",)),
    Reads(
        f"{SCHEDULER}.update_from_output",
        "Takes the numbers out, with or without a connector.",
        ("model_runner_output.ec_connector_output", "ec_connector_output.ec_connector_stats"),
    ),
    Calls(
        f"{SCHEDULER}.update_from_output",
        "Passes the numbers on.",
        "self.make_stats",
        num_positional=4,
        keyword=("ec_connector_stats",),
    ),
    Reads(
        f"{SCHEDULER}.make_stats", "Passes the numbers on unchanged.", ("ec_connector_stats.data",)
    ),
    Has(
        "vllm.v1.metrics.stats:SchedulerStats",
        "Carries the numbers to the front end.",
        ("ec_connector_stats",),
    ),
    Calls(
        f"{STAT_LOGGERS}:PrometheusStatLogger.__init__",
        "Makes one receiver for all engines.",
        "self._ec_connector_cls",
        num_positional=3,
    ),
    Calls(
        f"{STAT_LOGGERS}:PrometheusStatLogger.record",
        "Gives each step's numbers to the receiver.",
        "self.ec_connector_prom.observe",
        num_positional=2,
    ),
    Calls(
        f"{EC_METRICS}:ECConnectorProm.observe",
        "Gives the numbers to our metrics, with the engine's index.",
        "self.prom_metrics.observe",
        num_positional=2,
    ),
    Calls(
        f"{STAT_LOGGERS}:LoggingStatLogger.record",
        "Gives the numbers to the log; a hook omits them there.",
        "self.ec_connector_logging.observe",
        num_positional=1,
    ),
    Takes(
        "vllm.v1.metrics.utils:create_metric_per_engine",
        "Makes one child of each metric per engine, as for vLLM's own.",
        positional=("metric", "per_engine_labelvalues"),
    ),
)
