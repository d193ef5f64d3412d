"""A real server watched as in production: its metrics page, a real Prometheus, its log, and its trace spans."""

from __future__ import annotations

import http.server
import json
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from autogaze_backend import GazeModel
from autogaze_backend.metrics import METRICS, MetricKind
from autogaze_backend.serving import TritonServer, TritonServerConfig, model_repository_path
from autogaze_client import GazeClient, InvalidInputError, StreamExpired
from deploy.deploy_helpers import DEPLOY, free_port, require_command, running
from goldens import clips

pytestmark = pytest.mark.server

KNOBS = {"gazing_ratio": 0.2}
DASHBOARD = json.loads((DEPLOY / "grafana" / "autogaze.json").read_text())
# Of Triton, on machines with a GPU only.
GPU_METRICS = {"nv_gpu_utilization", "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes"}


class Collector:
    """What an OpenTelemetry collector does with OTLP over HTTP in JSON: takes spans."""

    def __init__(self) -> None:
        self.spans: list[dict] = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                for resource in body["resourceSpans"]:
                    for scope in resource["scopeSpans"]:
                        collector.spans += scope["spans"]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    running_collector = Collector()
    yield running_collector
    running_collector.close()


@pytest.fixture(scope="module")
def log() -> list[str]:
    return []


@pytest.fixture(scope="module")
def watched(bundle, collector, log) -> Iterator[TritonServer]:
    """Two stream places, JSON lines, and every request traced, with the flags of docs/observability.md."""
    config = TritonServerConfig(
        model_repository_path(),
        0,
        0,
        0,
        environment={
            "AUTOGAZE_BUNDLE": str(bundle("release")),
            "AUTOGAZE_MAX_STREAMS": "2",
            "AUTOGAZE_LOG_FORMAT": "json",
        },
        extra_args=(
            "--trace-config=mode=opentelemetry",
            "--trace-config=level=TIMESTAMPS",
            "--trace-config=rate=1",
            f"--trace-config=opentelemetry,url={collector.url}",
            "--trace-config=opentelemetry,resource=service.name=autogaze",
            "--trace-config=opentelemetry,bsp_schedule_delay=200",
        ),
    )
    with TritonServer(config, on_log=log.append) as server:
        server.wait_until_ready(120)
        yield server


@pytest.fixture
def client(watched):
    with GazeClient(watched.url) as connected:
        yield connected


def frames(count: int) -> np.ndarray:
    return clips.synthetic_clip(count, 90, 160, 5)


def scrape(server: TritonServer) -> dict[tuple[str, frozenset], float]:
    with urllib.request.urlopen(server.metrics_url, timeout=10) as page:
        lines = page.read().decode().splitlines()
    found = {}
    for line in lines:
        if match := re.fullmatch(r"([a-zA-Z_:]+)(?:\{(.*)\})? (\S+)", line):
            found[match[1], frozenset(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))] = float(match[3])
    return found


def eventually(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_the_page_counts_what_real_requests_did(client, watched):
    def read(name: str, model: str, **labels: str) -> float:
        key = frozenset({"model": model, "version": "1", **labels}.items())
        return scrape(watched).get((name, key), 0.0)

    served = [client.gaze(frames(count), **KNOBS) for count in (2, 3)]
    with pytest.raises(InvalidInputError):
        client.gaze(np.zeros((257, 1, 1, 3), np.uint8))
    streams = [client.stream(**KNOBS) for _ in range(3)]
    pushed = [stream.push(frames(1)[0]) for stream in streams]
    assert eventually(lambda: read("autogaze_streams_open", "autogaze_stream") == 2)
    evictions = {"name": "autogaze_stream_evictions_total", "model": "autogaze_stream", "reason": "evicted"}
    assert eventually(lambda: read(**evictions) == 1), "one was evicted for the third"
    assert read("autogaze_slots_in_use", "autogaze_stream") == 2
    with pytest.raises(StreamExpired):
        streams[0].push(frames(1)[0])
    pushed.append(streams[0].push(frames(1)[0]))
    for stream in streams:
        stream.close()

    def settles(wanted: float, name: str, model: str, **labels: str) -> None:
        """Each model's process publishes in a second of its own."""
        assert eventually(lambda: read(name, model, **labels) == pytest.approx(wanted, rel=1e-4)), (
            name,
            model,
            labels,
            read(name, model, **labels),
        )

    tokens = sum(int(result.tokens_per_frame.sum()) for result in served)
    warm_up = 2  # frames of the model's warm-up request
    settles(warm_up + 5, "autogaze_frames_total", "autogaze_generate")
    settles(3, "autogaze_tokens_per_frame_count", "autogaze_generate")
    warm_up_tokens = read("autogaze_tokens_total", "autogaze_generate") - tokens
    assert 0 < warm_up_tokens < tokens
    ratios = sum(result.gaze_ratio for result in served) + warm_up_tokens / warm_up / 265
    settles(ratios, "autogaze_gaze_ratio_sum", "autogaze_generate")
    settles(1, "autogaze_requests_total", "autogaze_generate", outcome="invalid")
    # 53 tokens in groups of 10 for each of the five frames.
    settles(warm_up + 5, "autogaze_steps_total", "autogaze_generate", phase="prefill")
    settles(0, "autogaze_slots_in_use", "autogaze_generate")
    assert read("autogaze_steps_total", "autogaze_generate", phase="step") >= 25
    assert read("autogaze_batch_rows_count", "autogaze_generate", phase="step") >= 25
    settles(0, "autogaze_streams_open", "autogaze_stream")
    settles(1, "autogaze_requests_total", "autogaze_stream", outcome="not_found")
    pushed_tokens = sum(int(result.tokens_per_frame.sum()) for result in pushed)
    settles(pushed_tokens, "autogaze_tokens_total", "autogaze_stream")
    for model, stages in {
        "autogaze_generate": ["preprocess", "encode", "prefill", "step"],
        "autogaze_stream": ["preprocess", "encode", "prefill", "step"],
    }.items():
        for stage in stages:
            count = read("autogaze_stage_milliseconds_count", model, stage=stage)
            assert count > 0, (model, stage)
            settles(count, "autogaze_stage_milliseconds_bucket", model, stage=stage, le="+Inf")


def test_the_page_says_which_engine_runs_each_model(watched, bundle):
    """What auto chose here: the same as the library chooses in this process."""
    chosen = GazeModel.load(bundle("release"), device="auto").info.labels

    def read() -> dict[str, dict[str, str]]:
        found = {}
        for (name, labels), value in scrape(watched).items():
            if name == "autogaze_engine_info":
                assert value == 1
                one = dict(labels)
                found[one.pop("model")] = one
        return found

    expected = {**chosen, "version": "1"}
    models = {"autogaze_generate": expected, "autogaze_stream": expected}
    assert eventually(lambda: read() == models), read()
    assert chosen["engine"] in {"tensorrt", "tensorrt-rtx", "torch", "onnxruntime"}


def test_every_line_of_the_models_names_its_request(client, log):
    client.gaze(frames(1), request_id="order-7", **KNOBS)
    with client.stream(request_id="door", **KNOBS) as stream:
        stream.push(frames(1)[0])

    def lines(name: str) -> dict[str, dict]:
        found = [json.loads(line) for line in log if line.startswith("{")]
        return {line["model"]: line for line in found if line.get("request_id") == name}

    stages = {"autogaze_generate"}
    assert eventually(lambda: set(lines("order-7")) == stages)
    generate = lines("order-7")["autogaze_generate"]
    assert (generate["outcome"], generate["frames"], generate["tokens"]) == ("ok", 1, 53)
    assert generate["milliseconds"] > 0
    assert eventually(lambda: "autogaze_stream" in lines("door-end"))
    assert lines("door-0")["autogaze_stream"]["correlation_id"] == stream.id


def test_spans_reach_a_collector_under_the_callers_trace(client, watched, collector):
    trace = "0af7651916cd43dd8448eb211c80319c"
    with GazeClient(watched.url, headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"}) as traced:
        traced.gaze(frames(1), request_id="traced-1", **KNOBS)

    def named() -> dict[str, list[dict]]:
        found: dict[str, list[dict]] = {}
        for span in collector.spans:
            if span["traceId"] == trace:
                found.setdefault(span["name"], []).append(span)
        return found

    # Each comes on its own.
    wanted = {"InferRequest", "autogaze", "autogaze_generate"}
    assert eventually(lambda: wanted <= set(named())), set(named())
    spans = named()
    by_id = {span["spanId"]: span for group in spans.values() for span in group}
    (generate,) = spans["autogaze_generate"]
    assert by_id[generate["parentSpanId"]]["name"] == "autogaze"
    attributes = {item["key"]: item["value"] for item in generate["attributes"]}
    assert attributes["triton.request_id"] == {"stringValue": "traced-1"}
    events = {event["name"] for event in generate["events"]}
    assert {"REQUEST_START", "QUEUE_START", "REQUEST_END"} <= events


def queries() -> list[str]:
    return [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]


def names_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:autogaze|nv)_[a-z0-9_]+", re.sub(r'"[^"]*"', "", expression)))


def test_every_query_of_the_dashboard_and_the_alerts_names_a_metric_that_exists(client, watched):
    client.gaze(frames(1), **KNOBS)
    with client.stream(**KNOBS) as stream:
        stream.push(frames(1)[0])
    series = {
        f"{name}{suffix}"
        for name, metric in METRICS.items()
        for suffix in (("_bucket", "_sum", "_count") if metric.kind is MetricKind.HISTOGRAM else ("",))
    }
    assert eventually(lambda: series <= {name for name, _ in scrape(watched)}), "a metric was never published"
    known = {name for name, _ in scrape(watched)} | GPU_METRICS
    alerts = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    expressions = [*queries(), *re.findall(r"expr: (?:>-\n)?(.*?)\n +(?:for|labels):", alerts, re.DOTALL)]
    assert len(expressions) > 25
    for expression in expressions:
        assert names_in(expression) <= known, expression
        assert names_in(expression) or "up{" in expression, expression
    used = set().union(*(names_in(expression) for expression in expressions))
    families = {name for name in METRICS if any(one.startswith(name) for one in used)}
    assert families == set(METRICS), "a metric is on no panel"


def test_a_real_prometheus_answers_every_query_of_the_dashboard(client, watched, tmp_path):
    prometheus = require_command("prometheus", "Debian package prometheus")
    config = tmp_path / "prometheus.yml"
    target = urllib.parse.urlsplit(watched.metrics_url).netloc
    config.write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        f"rule_files: [{DEPLOY}/prometheus/alerts.yml]\n"
        f"scrape_configs: [{{job_name: autogaze, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    port = free_port()
    command = [
        prometheus,
        f"--config.file={config}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]

    def ask(expression: str) -> list:
        query = expression.replace("$instance", ".*").replace("$__rate_interval", "1m")
        url = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": query})
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]["result"]

    def ready() -> bool:
        # It listens before it has opened its database, and refuses every question until then.
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=10):
                return True
        except urllib.error.HTTPError:
            return False

    with running(command, port, tmp_path / "log"):
        assert eventually(ready)
        # A rate needs a value before and after.
        assert eventually(lambda: bool(ask("autogaze_frames_total")))
        for _ in range(2):
            client.gaze(frames(1), **KNOBS)
            with client.stream(**KNOBS) as stream:
                stream.push(frames(1)[0])
            time.sleep(2.5)
        expected = [query for query in queries() if not names_in(query) <= GPU_METRICS]
        missing = expected

        def all_answered() -> bool:
            nonlocal missing
            missing = [query for query in missing if not ask(query)]
            return not missing

        assert eventually(all_answered, 30), missing
        query = "histogram_quantile(0.5, sum by (le) (rate(autogaze_tokens_per_frame_bucket"
        (median,) = ask(f'{query}{{model="autogaze_stream"}}[1m])))')
        assert 32 < float(median["value"][1]) <= 64, "53 tokens a frame lie in the bucket of 32 to 64"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/rules", timeout=10) as answer:
            (group,) = json.load(answer)["data"]["groups"]
        assert eventually(lambda: bool(ask("up == 1")))
        assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}


def test_the_rules_and_the_configuration_are_well_formed():
    import subprocess

    promtool = require_command("promtool", "Debian package prometheus")
    folder = Path(DEPLOY / "prometheus")
    for arguments in (["check", "rules", "alerts.yml"], ["check", "config", "prometheus.yml"]):
        done = subprocess.run([promtool, *arguments], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
