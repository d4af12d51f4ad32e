"""What an operator sees: `/metrics`, the dashboard and OpenTelemetry spans."""

import http
import json
import math
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import NamedTuple

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from layerskip_vllm.measure.server import HOST, Server, free_port, process_group
from tests.server.answers import Servers
from tests.server.collector import attributes

DASHBOARD = Path(__file__).parents[2] / "examples" / "grafana" / "layerskip.json"
SELECTION = re.compile(r"(vllm:\w+)\{([^}]*)\}")
BY = re.compile(r"by \((\w+)\)")
RARE = {"vllm:num_preemptions_total"}
"""Counters that a few requests do not change."""
LIMIT_S = 60


def complete(server: Server, max_tokens: int = 40, **options):
    return server.client.completions.create(
        model=server.model,
        prompt="Hello there",
        temperature=0,
        max_tokens=max_tokens,
        extra_body={"ignore_eos": True},
        **options,
    )


def queries() -> dict[str, str]:
    """Every query of the dashboard, as Grafana sends it, by panel and legend."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return {
        f"{panel['title']}: {target['legendFormat']}": target["expr"]
        .replace("$model", ".+")
        .replace("$__rate_interval", "1m")
        for panel in panels
        for target in panel["targets"]
    }


class Sample(NamedTuple):
    labels: dict[str, str]
    value: float


def samples(server: Server) -> dict[str, list[Sample]]:
    """All samples at `/metrics`, by the name that a query uses."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    found: dict[str, list[Sample]] = {}
    for sample in (sample for family in families for sample in family.samples):
        found.setdefault(sample.name, []).append(Sample(sample.labels, sample.value))
    return found


@pytest.mark.parametrize("query", list(queries().values()), ids=list(queries()))
def test_a_query_of_the_dashboard_finds_its_metrics_and_labels(servers, query):
    live = samples(servers.speculating)
    selections = SELECTION.findall(query)
    assert {name for name, _ in selections} == set(re.findall(r"vllm:\w+", query))
    by = BY.findall(query)
    for name, selector in selections:
        assert name in live
        wanted = set(re.findall(r"(\w+)=~?", selector))
        for sample in live[name]:
            assert wanted <= sample.labels.keys()
    assert all(any(label in s.labels for s in live[selections[0][0]]) for label in by)


def test_dashboard_metrics_change_with_requests(servers):
    def totals() -> dict[str, float]:
        live = samples(servers.speculating)
        return {
            name: sum(sample.value for sample in live[name])
            for query in queries().values()
            for name, _ in SELECTION.findall(query)
            if name.endswith(("_total", "_sum", "_count", "_bucket"))
        }

    before = totals()
    complete(servers.speculating)
    deadline = time.monotonic() + LIMIT_S
    while unchanged := {name for name, v in totals().items() if v <= before[name]} - RARE:
        assert time.monotonic() < deadline, unchanged
        time.sleep(0.1)


def test_the_workers_counts_agree_with_vllms(servers):
    """With one request and K tokens in every draft, the counts are known in advance."""

    def totals() -> dict[str, float]:
        live = samples(servers.speculating)
        return {name: sum(sample.value for sample in found) for name, found in live.items()}

    before = totals()
    answer = complete(servers.speculating)
    deadline = time.monotonic() + LIMIT_S
    generated = "vllm:generation_tokens_total"
    while (now := totals())[generated] < before[generated] + answer.usage.completion_tokens:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    drafts, drafted, resumed, fresh, verifications = (
        now[name] - before[name]
        for name in (
            "vllm:spec_decode_num_drafts_total",
            "vllm:spec_decode_num_draft_tokens_total",
            "vllm:layerskip_num_resumed_tokens_total",
            "vllm:layerskip_num_fresh_tokens_total",
            "vllm:layerskip_verify_time_seconds_count",
        )
    )
    # A verification resumes t and its drafts; the last token may come without drafts.
    assert 0 <= resumed - (drafts + drafted) <= 1
    assert 3 * drafts - (2 + 1) <= drafted <= 3 * drafts
    assert verifications == drafts
    cached = now["vllm:prompt_tokens_cached_total"] - before["vllm:prompt_tokens_cached_total"]
    assert fresh == answer.usage.prompt_tokens - cached


def test_a_plain_server_has_none_of_our_metrics(servers):
    assert not [name for name in samples(servers.plain) if "layerskip" in name]


def test_the_periodic_log_lines_are_vllms_own(servers):
    """They would otherwise print a connector's stats, although there is no connector."""
    deadline = time.monotonic() + LIMIT_S
    while "SpecDecoding metrics: " not in (log := servers.speculating.log.read_text()):
        assert time.monotonic() < deadline
        complete(servers.speculating)
    assert "EC Transfer metrics" not in log


def test_the_log_denies_nothing_that_works(servers):
    """vLLM warns that `min_p` and `logit_bias` have no effect under speculation."""
    log = servers.speculating.log.read_text()
    assert "LayerSkip: layers [0, " in log
    assert "won't work" not in log


def values_of(port: int, query: str) -> list[float]:
    """Prometheus's current values; empty while it has too few samples."""
    url = f"http://{HOST}:{port}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            result = json.load(response)["data"]["result"]
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.SERVICE_UNAVAILABLE:  # it is starting
            return []
        pytest.fail(f"{query}: {error.read().decode()}")
    except OSError:
        return []
    return [float(series["value"][1]) for series in result]


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed")
def test_prometheus_answers_every_query_of_the_dashboard(servers, tmp_path):
    config = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {
                "job_name": "vllm",
                "static_configs": [{"targets": [f"{HOST}:{servers.speculating.port}"]}],
            }
        ],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address={HOST}:{port}",
    ]
    waiting, deadline = queries(), time.monotonic() + LIMIT_S
    with (
        (tmp_path / "prometheus.log").open("w") as log,
        process_group(command, stdout=log, env=dict(os.environ)),
    ):
        while waiting:
            assert time.monotonic() < deadline, sorted(waiting)
            complete(servers.speculating)  # a rate needs counters that rise between scrapes
            for name, values in [(n, values_of(port, query)) for n, query in waiting.items()]:
                if values and all(map(math.isfinite, values)):
                    del waiting[name]


def request_span(servers: Servers, path: str, trace_id: str) -> dict[str, object]:
    """Attributes of the request's span, once the server has exported it."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        spans = servers.collector.named(path, "llm_request")
        for span in spans:
            if span.trace_id.hex() == trace_id:
                return attributes(span)
        assert time.monotonic() < deadline, f"{len(spans)} spans, none of trace {trace_id}"
        time.sleep(0.1)


@pytest.mark.parametrize("max_tokens", [1, 2, 25])
def test_spans_equal_a_plain_servers(servers, max_tokens):
    trace_id = f"{max_tokens:032x}"
    headers = {"traceparent": f"00-{trace_id}-{1:016x}-01"}
    for server in (servers.plain, servers.speculating):
        complete(server, max_tokens, extra_headers=headers)
    plain, speculating = (request_span(servers, path, trace_id) for path in ("plain", "self"))
    assert speculating.keys() == plain.keys()
    keys = [key for key in plain if key.startswith(("gen_ai.usage", "gen_ai.request."))]
    keys.remove("gen_ai.request.id")
    assert {key: speculating[key] for key in keys} == {key: plain[key] for key in keys}
    assert plain["gen_ai.usage.completion_tokens"] == max_tokens


def test_prompts_never_reach_logs_metrics_or_traces(servers):
    word = "xyzzyplugh"
    server = servers.speculating
    server.client.completions.create(
        model=server.model, prompt=f"The word is {word}.", max_tokens=20, temperature=0
    )
    server.client.chat.completions.create(
        model=server.model, messages=[{"role": "user", "content": word}], max_tokens=20
    )
    with pytest.raises(openai.BadRequestError):
        server.client.completions.create(model=server.model, prompt=word, max_tokens=-1)
    stream = server.client.completions.create(
        model=server.model, prompt=word, max_tokens=400, stream=True
    )
    next(iter(stream))
    stream.close()
    complete(server)  # afterwards the log contains all earlier requests
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        assert word.encode() not in response.read()
    assert word not in server.log.read_text()
    assert word not in str(servers.collector.spans["self"])
