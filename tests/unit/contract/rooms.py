"""The rooms of the contract, in the order of the ledger."""

from tests.unit.contract import (
    compat,
    configuration,
    models,
    runner_v1,
    scheduling,
    spec_decode,
    telemetry,
)

ROOMS = (configuration, models, spec_decode, scheduling, runner_v1, telemetry, compat)

CONTRACT = tuple(expectation for room in ROOMS for expectation in room.EXPECTATIONS)
