"""Telemetry: `telemetry.py`, and the path of a worker's numbers to `/metrics`."""

from tests.unit.contract.expectations import Calls, Has, Reads, Takes
from tests.unit.contract.runner_v1 import RUNNER
from tests.unit.contract.scheduling import SCHEDULER

EC_METRICS = "vllm.distributed.ec_transfer.ec_connector.metrics"
STAT_LOGGERS = "vllm.v1.metrics.loggers"

EXPECTATIONS = (
    Takes(
        f"{RUNNER}.sample_tokens",
        "Overridden, original called; our numbers are added to what it returns.",
        positional=("grammar_output",),
    ),
    Has(
        "vllm.v1.outputs:ModelRunnerOutput",
        "Carries the numbers of a step.",
        ("req_ids", "ec_connector_output"),
    ),
    Takes(
        "vllm.v1.outputs:ECConnectorOutput",
        "Holds them on the way to the scheduler.",
        keyword=("ec_connector_stats",),
    ),
    Takes(f"{EC_METRICS}:ECConnectorStats", "Holds them by name.", positional=("data",)),
    Reads(
        f"{SCHEDULER}.update_from_output",
        "Takes them out, with a connector or without.",
        ("model_runner_output.ec_connector_output", "ec_connector_output.ec_connector_stats"),
    ),
    Calls(
        f"{SCHEDULER}.update_from_output",
        "Passes them on.",
        "self.make_stats",
        num_positional=4,
        keyword=("ec_connector_stats",),
    ),
    Reads(
        f"{SCHEDULER}.make_stats", "Passes the numbers on unchanged.", ("ec_connector_stats.data",)
    ),
    Has(
        "vllm.v1.metrics.stats:SchedulerStats",
        "Brings them to the front end.",
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
        "Gives them to our metrics, with the engine's index.",
        "self.prom_metrics.observe",
        num_positional=2,
    ),
    Calls(
        f"{STAT_LOGGERS}:LoggingStatLogger.record",
        "Gives them to the log, where a hook omits them.",
        "self.ec_connector_logging.observe",
        num_positional=1,
    ),
    Takes(
        "vllm.v1.metrics.utils:create_metric_per_engine",
        "One child of each metric per engine, as for vLLM's own.",
        positional=("metric", "per_engine_labelvalues"),
    ),
)
