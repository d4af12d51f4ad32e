"""Two emulated hosts with a cable between them and a Ray cluster on both."""

import contextlib
import tempfile
from pathlib import Path

import pytest

from tests.parallel.hosts import Host, connect, why_not


@contextlib.contextmanager
def two_hosts():
    """Head and worker: (10.77.0.1, 10.77.0.2); a Ray node of one CPU runs on each."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="lsk") as directory:
        home = Path(directory) / "home"
        head = Host(home, "10.77.0.1", "eth0")
        try:
            worker = Host(home, "10.77.0.2", "eth0")
            try:
                connect(head, worker)
                head.start_ray(num_cpus=1)
                worker.start_ray(head=head.address, num_cpus=1)
                yield head, worker
            finally:
                worker.power_off()
        finally:
            head.power_off()


@pytest.fixture(scope="module")
def hosts():
    with two_hosts() as hosts:
        yield hosts
