"""The container files fit together; building the images needs a container engine."""

import fnmatch
import json
import re
from pathlib import Path

import pytest
import yaml

from layerskip_vllm.compat.releases import SUPPORTED_VLLM, release_series

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
GRAFANA = ROOT / "examples" / "grafana"
DOCKERFILES = [ROOT / "Dockerfile", ROOT / "Dockerfile.cuda"]


class Overriding(yaml.SafeLoader):
    """Reads Compose's `!override`: the value replaces the other file's instead of joining it."""


Overriding.add_constructor(
    "!override", lambda loader, node: loader.construct_sequence(node, deep=True)
)


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """Each instruction with its arguments, on one line."""
    text = re.sub(r"^#.*\n", "", dockerfile.read_text(), flags=re.M).replace("\\\n", " ")
    return [(line.split()[0], " ".join(line.split()[1:])) for line in text.splitlines() if line]


def arguments(dockerfile: Path, instruction: str) -> list[str]:
    return [rest for name, rest in instructions(dockerfile) if name == instruction]


def mounts(service: str) -> dict[str, Path]:
    """Files and folders of the repository, by their path in the container."""
    found = {}
    for volume in SERVICES[service]["volumes"]:
        source, target, mode = volume.split(":")
        assert mode == "ro"
        found[target] = ROOT / source
    return found


def server_port() -> str:
    (port,) = arguments(ROOT / "Dockerfile", "EXPOSE")
    return port


@pytest.mark.parametrize("service", SERVICES)
def test_all_that_a_service_mounts_exists(service):
    assert [target for target, source in mounts(service).items() if not source.exists()] == []


@pytest.mark.parametrize("service", SERVICES)
def test_ports_are_open_on_this_host_only(service):
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[service].get("ports", []))


def test_the_server_serves_the_checkpoint_that_it_mounts():
    command = SERVICES["server"]["command"]
    assert (mounts("server")[command[0]] / "model.safetensors").is_file()
    assert "--speculative-model=self:auto" in command
    assert SERVICES["server"]["ports"] == [f"127.0.0.1:8000:{server_port()}"]


def test_the_health_check_asks_the_servers_port():
    (check,) = arguments(ROOT / "Dockerfile", "HEALTHCHECK")
    assert f"http://127.0.0.1:{server_port()}/health" in check


def test_prometheus_scrapes_the_server():
    (path,) = mounts("prometheus").values()
    (job,) = yaml.safe_load(path.read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"server:{server_port()}"]}]


def test_grafana_finds_prometheus_and_the_dashboard():
    provisioning = mounts("grafana")["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    assert source["isDefault"]
    (provider,) = yaml.safe_load((provisioning / "dashboards/layerskip.yaml").read_text())[
        "providers"
    ]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert mounts("grafana")[home] == GRAFANA / "layerskip.json"
    assert str(Path(home).parent) == provider["options"]["path"]
    variables = json.loads((GRAFANA / "layerskip.json").read_text())["templating"]["list"]
    assert {"type": "datasource", "query": source["type"]}.items() <= variables[0].items()


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_what_an_image_copies_exists_and_is_not_ignored(dockerfile):
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    for rest in arguments(dockerfile, "COPY"):
        if rest.startswith("--from"):
            continue
        for source in rest.split()[:-1]:
            assert (ROOT / source).exists()
            assert any(fnmatch.fnmatch(source.split("/")[0], rule) for rule in kept), source


def test_the_image_installs_the_lock_as_make_setup_does():
    (wheels,) = re.findall(r"^WHEELS := (.+)$", (ROOT / "Makefile").read_text(), re.M)
    (command,) = [run for run in arguments(ROOT / "Dockerfile", "RUN") if "cpu.txt" in run]
    assert {*wheels.split(), "--no-deps"} <= set(command.split())


def test_the_server_does_not_run_as_root():
    last_stage = (ROOT / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (\d+)$", last_stage, re.M) == ["1000"]


def test_the_cuda_image_starts_from_a_supported_vllm():
    (tag,) = re.findall(r"^ARG VLLM_IMAGE=\S+:v(\S+)$", DOCKERFILES[1].read_text(), re.M)
    assert release_series(tag) in SUPPORTED_VLLM


def test_every_image_is_pinned_to_a_release():
    images = [service["image"] for name, service in SERVICES.items() if name != "server"]
    for dockerfile in DOCKERFILES:
        images += [
            image for a in arguments(dockerfile, "ARG") for image in re.findall("_IMAGE=(.+)", a)
        ]
    assert [image for image in images if not re.search(r":v?\d+\.\d+\.\d+", image)] == []


def test_the_gpu_changes_the_server_alone():
    """What it does not replace is compose.yaml's: Prometheus finds it under the same name."""
    (changed,) = yaml.load((ROOT / "compose.cuda.yaml").read_text(), Overriding)["services"].items()
    name, server = changed
    assert name == "server"
    assert (ROOT / server["build"]["dockerfile"]) in DOCKERFILES
    assert server["command"][1:] == SERVICES["server"]["command"][1:]
    assert server["gpus"] == "all"
