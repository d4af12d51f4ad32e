"""Processes that die or are terminated: the server behaves like a plain one and leaves nothing."""

import re
from dataclasses import replace

import pytest

from tests.faults.watched import (
    CONTEXT,
    Ending,
    killed,
    side_by_side,
    terminated,
    terminated_while_loading,
    watched,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(random_llama):
    return random_llama(num_layers=6, late_scale=0.3)


@pytest.fixture(scope="module")
def answer(model, tmp_path_factory):
    """The answer of an undisturbed server."""
    with watched(model, directory=tmp_path_factory.mktemp("undisturbed")) as server:
        server.wait_until_ready()
        return server.complete()


def fault_and_restart(model, answer, directory, fault, *flags, waits=True):
    """`happen` for `side_by_side`: start, cause the fault, start again on the same port."""

    def happen(speculation) -> Ending:
        with watched(model, *CONTEXT, *flags, *speculation, directory=directory) as server:
            if waits:
                server.wait_until_ready()
                assert server.complete() == answer
            ending = fault(server)
        with watched(model, *speculation, directory=directory, port=server.port) as again:
            again.wait_until_ready()
            assert again.complete() == answer
        return ending

    return happen


@pytest.mark.parametrize(
    ("title", "message"),
    [
        ("Worker", "Worker proc .* died unexpectedly"),
        ("EngineCore", "engine core exited unexpectedly|EngineDeadError"),
    ],
)
def test_a_killed_process_ends_server_and_streams(model, answer, tmp_path, title, message):
    logs = []

    def kill(server) -> Ending:
        ending = killed(server, title)
        logs.append(server.log)
        return ending

    plain, ours = side_by_side(fault_and_restart(model, answer, tmp_path, kill))
    assert ours.behaviour == plain.behaviour
    assert ours.stream_failed
    assert all(re.search(message, log) for log in logs)
    assert ours.leftovers == ()


def test_a_server_stops_when_terminated_while_decoding(model, answer, tmp_path):
    plain, ours = side_by_side(fault_and_restart(model, answer, tmp_path, terminated))
    # In stock vLLM 0.32 it is a race whether the client sees an error, an ended stream or nothing.
    plain, ours = (replace(ending, stream_failed=None) for ending in (plain, ours))
    assert ours.behaviour == plain.behaviour
    assert ours.leftovers == ()


def test_a_server_with_a_shutdown_timeout_finishes_its_streams(model, answer, tmp_path):
    timeout = ("--shutdown-timeout", "80")
    plain, ours = side_by_side(fault_and_restart(model, answer, tmp_path, terminated, *timeout))
    assert ours.behaviour == plain.behaviour
    assert ours.stream_failed is False
    assert ours.leftovers == ()


def test_a_server_stops_when_terminated_while_loading(model, answer, tmp_path):
    plain, ours = side_by_side(
        fault_and_restart(model, answer, tmp_path, terminated_while_loading, waits=False)
    )
    assert ours.behaviour == plain.behaviour
    assert ours.leftovers == ()
