"""Emulated hosts: processes with their own network and `/dev/shm`, and Ray nodes on them.

`ray start` listens on every interface, despite its address option. So a test's Ray runs on a host
whose only interface is the loopback, or a cable to another such host.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.server.servers import user_environment

RAY_PORT = 6379
METRICS_PORT = 9090
COMMAND_LIMIT_S = 300


def skip_reason() -> str | None:
    """Why hosts cannot be emulated here; None if they can."""
    missing = [tool for tool in ("unshare", "nsenter", "ip") if shutil.which(tool) is None]
    if missing:
        return f"emulated hosts need {' and '.join(missing)} (util-linux, iproute2)"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "true"], capture_output=True, text=True, check=False
    )
    return f"emulated hosts need root: {tried.stderr.strip()}" if tried.returncode else None


class Host:
    """One emulated host, kept alive by a sleeping process in its namespaces."""

    def __init__(self, home: Path, address: str, interface: str) -> None:
        self.address = address
        self.head: str | None = None
        self.interface = interface
        # Ray saves a token under HOME that `ray start` needs, and all nodes must use the same path
        # for their sockets: each host mounts its own file system there.
        self.home = home
        home.mkdir(exist_ok=True)
        mounts = f"mount -t tmpfs tmpfs /dev/shm && mount -t tmpfs tmpfs {home}"
        self._holder = subprocess.Popen(
            [
                *("unshare", "--net", "--mount", "--propagation", "private"),
                *("sh", "-c", f"{mounts} && ip link set lo up && echo up && exec sleep infinity"),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "up\n"

    @property
    def pid(self) -> int:
        """Id of the process that keeps the namespaces."""
        return self._holder.pid

    def variables(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Environment of the host's processes."""
        own = {
            "HOME": str(self.home),
            "RAY_ADDRESS": f"{self.head or self.address}:{RAY_PORT}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "VLLM_HOST_IP": self.address,
            "GLOO_SOCKET_IFNAME": self.interface,
            "VLLM_CPU_OMP_THREADS_BIND": "0|1",
            # Ray gives its workers a low priority, which starves them beside another test.
            "RAY_worker_niceness": "0",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        return user_environment() | own | (extra or {})

    def inside(self, command: Sequence[str], directory: Path | None = None) -> list[str]:
        """The command line that runs a command on the host, by default in the current directory."""
        enter = ["nsenter", "--target", str(self.pid), "--net", "--mount"]
        enter.append(f"--wdns={directory or Path.cwd()}")
        return [*enter, "--", *command]

    def run(
        self,
        command: Sequence[str],
        stdin: str = "",
        directory: Path | None = None,
        **variables: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the host and wait for it."""
        return subprocess.run(
            self.inside(command, directory),
            env=self.variables(variables),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_LIMIT_S,
            check=False,
        )

    def start_ray(self, head: str | None = None, num_cpus: int = 2, **variables: str) -> None:
        """Start a Ray node: a head, or one that joins the head at the given address."""
        self.head = head
        role = ["--head", f"--port={RAY_PORT}", "--include-dashboard=false"]
        role.append(f"--metrics-export-port={METRICS_PORT}")
        role.append(f"--temp-dir={self.home}/ray")
        if head is not None:
            role = [f"--address={head}:{RAY_PORT}"]
        done = self.run(
            [
                *("ray", "start", *role),
                *(f"--node-ip-address={self.address}", f"--num-cpus={num_cpus}"),
                *("--object-store-memory=200000000", "--disable-usage-stats"),
            ],
            **variables,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def processes(self) -> list[int]:
        """Process ids on the host, without the holder's."""
        own = os.readlink(f"/proc/{self.pid}/ns/net")
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and os.readlink(entry / "ns" / "net") == own:
                    found.append(int(entry.name))
        return [pid for pid in found if pid != self.pid]

    def titles(self) -> list[str]:
        """Command lines of the host's processes."""
        titles = []
        for pid in self.processes():
            with contextlib.suppress(OSError):
                titles.append(Path(f"/proc/{pid}/cmdline").read_text())
        return titles

    def end_processes(self) -> None:
        """Kill all processes on the host; host and network remain."""
        while pids := self.processes():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def power_off(self) -> None:
        """Kill all processes and the host."""
        self.end_processes()
        self._holder.kill()
        self._holder.wait()


def connect(first: Host, second: Host) -> None:
    """Connect two hosts by a cable, and set the addresses of its ends."""
    ends = ((first, "lsk-a"), (second, "lsk-b"))
    # The ends are created in their hosts, so none is left behind if the next step fails.
    _ip(
        *("link", "add", "lsk-a", "netns", str(first.pid), "type", "veth"),
        *("peer", "name", "lsk-b", "netns", str(second.pid)),
    )
    for host, end in ends:
        for command in (
            ["link", "set", end, "name", host.interface],
            ["addr", "add", f"{host.address}/24", "dev", host.interface],
            ["link", "set", host.interface, "up"],
        ):
            subprocess.run(host.inside(["ip", *command]), check=True)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextlib.contextmanager
def one_host(num_cpus: int = 2, **variables: str) -> Iterator[Host]:
    """A host with only a loopback, and a Ray head on it with these environment variables."""
    with tempfile.TemporaryDirectory(prefix="lsk") as directory:
        host = Host(Path(directory) / "home", "10.77.0.1", "lo")
        try:
            # What a loopback name resolves to depends on the machine's network.
            add_address = ["ip", "addr", "add", f"{host.address}/32", "dev", host.interface]
            subprocess.run(host.inside(add_address), check=True)
            host.start_ray(num_cpus=num_cpus, **variables)
            yield host
        finally:
            host.power_off()


@contextlib.contextmanager
def two_hosts():
    """(head, worker) at 10.77.0.1 and 10.77.0.2; each runs a Ray node with one CPU."""
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
