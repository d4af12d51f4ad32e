"""The areas of the contract, in the order of the ledger."""

from tests.unit.contract import (
    compat,
    configuration,
    graphs,
    models,
    runner_v1,
    runner_v2,
    sampling,
    scheduling,
    spec_decode,
    speculator,
    telemetry,
)

AREAS = (
    *(configuration, models, spec_decode, scheduling, runner_v1, runner_v2, sampling, speculator),
    *(graphs, telemetry, compat),
)

CONTRACT = tuple(expectation for area in AREAS for expectation in area.EXPECTATIONS)
