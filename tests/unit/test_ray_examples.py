"""The example manifests, checked without a cluster."""

import json
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml

from layerskip_vllm.compat.releases import SUPPORTED_VLLM, release_series
from layerskip_vllm.version import __version__

EXAMPLES = Path(__file__).parents[2] / "examples" / "ray"
SCHEMA = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"


def test_the_cluster_file_is_valid_for_rays_launcher():
    cluster = yaml.safe_load((EXAMPLES / "cluster.yaml").read_text())
    jsonschema.validate(cluster, json.loads(SCHEMA.read_text()))
    packages = dict(re.findall(r"(\S+)==(\S+)", " ".join(cluster["setup_commands"])))
    assert packages["layerskip-vllm"] == __version__
    assert release_series(packages["vllm"]) in SUPPORTED_VLLM
    assert packages["ray"] == ray.__version__


def test_the_kuberay_job_requests_one_gpu_per_rank():
    job, service = yaml.safe_load_all((EXAMPLES / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == ray.__version__
    (worker,) = cluster["workerGroupSpecs"]
    nodes = [cluster["headGroupSpec"]] + [worker] * worker["replicas"]
    containers = [c for node in nodes for c in node["template"]["spec"]["containers"]]
    num_gpus = sum(int(c["resources"]["limits"]["nvidia.com/gpu"]) for c in containers)
    (tensor_parallel_size,) = re.findall(r"--tensor-parallel-size (\d+)", job["spec"]["entrypoint"])
    assert num_gpus == int(tensor_parallel_size)
    # The volumes that containers mount exist.
    for node in nodes:
        spec = node["template"]["spec"]
        names = {volume["name"] for volume in spec["volumes"]}
        assert {m["name"] for c in spec["containers"] for m in c["volumeMounts"]} <= names
    labels = cluster["headGroupSpec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        ([], {}, "usage: serve.sh MODEL E"),
        (["model"], {}, "usage: serve.sh MODEL E"),
        (["model", "4"], {}, "set it to the address of the cluster"),
    ],
)
def test_the_serve_script_says_what_is_missing(arguments, variables, message):
    done = subprocess.run(
        ["bash", EXAMPLES / "serve.sh", *arguments],
        env={"PATH": "/usr/bin:/bin"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert message in done.stderr


@pytest.mark.parametrize(("vllm_exit", "expected"), [(0, 1), (3, 3)])
def test_the_serve_script_fails_when_the_server_exits(vllm_exit, expected, tmp_path):
    vllm = tmp_path / "vllm"
    vllm.write_text(f"#!/bin/sh\nexit {vllm_exit}\n")
    vllm.chmod(0o755)
    done = subprocess.run(
        ["bash", EXAMPLES / "serve.sh", "model", "4"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "RAY_ADDRESS": "nowhere:1"},
        check=False,
    )
    assert done.returncode == expected


def test_the_serve_script_succeeds_when_terminated(tmp_path):
    vllm = tmp_path / "vllm"
    vllm.write_text("#!/bin/sh\ntrap 'exit 0' TERM\necho up\nwhile :; do sleep 0.05; done\n")
    vllm.chmod(0o755)
    with subprocess.Popen(
        ["bash", EXAMPLES / "serve.sh", "model", "4"],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "RAY_ADDRESS": "nowhere:1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "up\n"
        process.terminate()
        assert process.wait() == 0
