"""What deploy/ ships, put before the tools that its readers use. Each test skips where its tool is not installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from deploy.deploy_helpers import DEPLOY, envoy_command, nginx, require_command

CHART = DEPLOY / "helm" / "autogaze"
KUBERNETES = ("1.27", "1.31", "1.34")
EVERYTHING = {"autoscaling": {"enabled": True}, "serviceMonitor": {"enabled": True}}


def check(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def render(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The chart's objects by kind and name."""
    helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed (extra deploy)")
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed (extra deploy)")
    with helm.Chart.load(str(CHART)) as chart:
        chart.validate_schema(values)
        files = chart.render(values, name="demo", namespace="prod")
    found = {}
    for name, text in files.items():
        for document in yaml.safe_load_all(text) if name.endswith(".yaml") else []:
            if document:
                found[f"{document['kind']}/{document['metadata']['name']}"] = document
    return found


def test_the_dockerfile():
    check(require_command("hadolint", "extra deploy"), DEPLOY / "Dockerfile")


def test_no_image_runs_as_root():
    files = sorted(DEPLOY.rglob("Dockerfile"))
    assert len(files) == 2
    for file in files:
        lines = file.read_text().splitlines()
        last_stage = max(index for index, line in enumerate(lines) if line.startswith("FROM "))
        users = [line.split()[1] for line in lines[last_stage:] if line.startswith("USER ")]
        assert users, f"{file} names no user"
        assert users[-1].split(":")[0] not in ("root", "0")


def test_the_entrypoint_is_posix_sh():
    check(require_command("shellcheck", "Debian package shellcheck"), "--shell=sh", DEPLOY / "entrypoint.sh")


def test_the_yaml_files():
    check(require_command("yamllint", "extra deploy"), "--strict", "-c", DEPLOY / ".yamllint", DEPLOY)


def test_the_image_copies_only_what_its_context_lets_through():
    copied = [
        line.split()[1]
        for line in (DEPLOY / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line and "--chmod" not in line
    ]
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    root = DEPLOY.parent
    for name in [*copied, "README.md", "deploy/entrypoint.sh", "deploy/probe.py"]:
        assert f"!{name}" in allowed
        assert (root / name).exists()


@pytest.mark.parametrize("files", [["compose.yaml"], ["compose.yaml", "compose.gpu.yaml"]])
def test_compose(files):
    command = shutil.which("docker-compose")
    if command is None:
        pytest.skip("docker-compose is not installed (Debian package docker-compose)")
    check(command, *(part for name in files for part in ("-f", DEPLOY / name)), "config", "--quiet")


def test_compose_locks_the_server_down():
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed (extra deploy)")
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    server = services["autogaze"]
    assert server["read_only"] is True
    assert server["user"] == "1000:1000"
    assert server["cap_drop"] == ["ALL"]
    assert (server["shm_size"], server["tmpfs"]) == ("1gb", ["/tmp"])
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_helm_lint():
    helm = pytest.importorskip("helm_python", reason="helm-python-sdk is not installed (extra deploy)")
    report = helm.lint(str(CHART))
    assert report["errors"] == []
    assert [item["error"] for item in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("values", [{}, EVERYTHING, {"gpu": {"count": 0}, "balancer": {"enabled": False}}])
def test_kubernetes_accepts_what_the_chart_renders(values, version):
    validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed (extra deploy)"
    )
    objects = render(values)
    assert "StatefulSet/demo" in objects
    for name, document in objects.items():
        if not name.startswith("ServiceMonitor/"):  # of the Prometheus operator, in no schema of Kubernetes
            validate.validate(document, version, strict=True)


def test_a_pod_is_a_server_with_a_gpu_probes_and_a_tight_security_context():
    spec = render({})["StatefulSet/demo"]["spec"]
    pod = spec["template"]["spec"]
    (server,) = pod["containers"]
    assert server["resources"]["limits"]["nvidia.com/gpu"] == 1
    startup = server["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] == 1800
    for probe in (server["readinessProbe"], server["livenessProbe"]):
        assert probe["exec"]["command"] == ["autogaze-probe"]
        # The server and two models, each with six seconds.
        assert probe["timeoutSeconds"] > 3 * 6
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert server["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {mount["mountPath"] for mount in server["volumeMounts"]}
    assert mounts == {"/var/lib/autogaze", "/dev/shm", "/tmp"}
    environment = {item["name"]: item["value"] for item in server["env"]}
    assert int(environment["AUTOGAZE_EXIT_SECONDS"]) < pod["terminationGracePeriodSeconds"]
    assert spec["replicas"] == 1


def test_instances_are_a_value_of_the_chart():
    def variables(values: dict[str, Any]) -> dict[str, str]:
        (server,) = render(values)["StatefulSet/demo"]["spec"]["template"]["spec"]["containers"]
        return {item["name"]: item["value"] for item in server["env"] if "INSTANCES" in item["name"]}

    names = ("AUTOGAZE_CLIP_INSTANCES", "AUTOGAZE_STREAM_INSTANCES")
    assert variables({}) == dict.fromkeys(names, "1")
    assert variables({"instances": {"clips": 2, "streams": 4}}) == dict(zip(names, ("2", "4"), strict=True))


@pytest.mark.parametrize("wanted", [False, True])
def test_the_multi_process_service_is_a_value_of_the_chart(wanted):
    (server,) = render({"mps": wanted})["StatefulSet/demo"]["spec"]["template"]["spec"]["containers"]
    assert ({"name": "AUTOGAZE_MPS", "value": "1"} in server["env"]) == wanted


def test_the_autoscaler_owns_the_number_of_pods_and_asks_for_the_queue_time():
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed (extra deploy)")
    objects = render(EVERYTHING)
    assert "replicas" not in objects["StatefulSet/demo"]["spec"]
    scaler = objects["HorizontalPodAutoscaler/demo"]["spec"]
    assert scaler["scaleTargetRef"]["kind"] == "StatefulSet"
    (metric,) = scaler["metrics"]
    rules = yaml.safe_load((DEPLOY / "helm" / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rules[0]["name"]["as"]
    assert "nv_inference_queue_duration_us" in rules[0]["metricsQuery"]


def test_the_adapters_query_is_promql():
    promql = pytest.importorskip("promql_parser", reason="promql-parser is not installed (extra deploy)")
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed (extra deploy)")
    (rule,) = yaml.safe_load((DEPLOY / "helm" / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    query = (
        rule["metricsQuery"].replace("<<.GroupBy>>", "pod").replace("<<.LabelMatchers>>", 'namespace="prod"')
    )
    promql.parse(query)


def test_services_select_the_balancer_or_the_servers():
    objects = render({})
    servers = objects["StatefulSet/demo"]["spec"]["template"]["metadata"]["labels"]
    balancers = objects["Deployment/demo-balancer"]["spec"]["template"]["metadata"]["labels"]

    def selects(service: dict[str, Any], labels: dict[str, str]) -> bool:
        return service["spec"]["selector"].items() <= labels.items()

    assert selects(objects["Service/demo"], balancers)
    assert not selects(objects["Service/demo"], servers)
    assert selects(objects["Service/demo-servers"], servers)
    assert not selects(objects["Service/demo-servers"], balancers)
    assert selects(render({"balancer": {"enabled": False}})["Service/demo"], servers)
    budget = objects["PodDisruptionBudget/demo"]["spec"]["selector"]["matchLabels"]
    assert budget.items() <= servers.items()
    assert not budget.items() <= balancers.items()


@pytest.mark.parametrize(
    "values",
    [{"engine": "tpu"}, {"gpu": {"count": 2}}, {"replicas": 0}, {"sharedMemory": "lots"}, {"typo": 1}],
)
def test_the_chart_refuses_values_that_make_no_sense(values):
    with pytest.raises(Exception, match=f"{next(iter(values))}"):
        render(values)


def test_the_charts_envoy_is_the_tested_one():
    shipped = (DEPLOY / "envoy" / "envoy.yaml").read_text().splitlines()
    charts = (CHART / "files" / "envoy.yaml").read_text().splitlines()
    differences = {line.strip() for line in set(shipped) ^ set(charts)}
    assert all("endpoint: " in line or line.startswith("#") for line in differences), differences
    config = render({})["ConfigMap/demo-balancer"]["data"]["envoy.yaml"]
    assert config.count("address: demo-servers, port_value: 8001") == 1
    assert "SERVERS" not in config


def test_envoy_accepts_both(tmp_path):
    command = envoy_command()
    for name, text in {
        "shipped": (DEPLOY / "envoy" / "envoy.yaml").read_text(),
        "chart": render({})["ConfigMap/demo-balancer"]["data"]["envoy.yaml"],
    }.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        check(command, "--mode", "validate", "--disable-hot-restart", "-l", "error", "-c", path)


def test_nginx_starts_with_the_shipped_configuration(tmp_path):
    with nginx(["127.0.0.1:1", "127.0.0.1:2"], tmp_path) as url:
        assert url.startswith("127.0.0.1:")


def test_the_inference_service_has_a_pod_that_kubernetes_accepts():
    validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed (extra deploy)"
    )
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed (extra deploy)")
    service = yaml.safe_load((DEPLOY / "kserve" / "inferenceservice.yaml").read_text())
    predictor = service["spec"]["predictor"]
    fields = {"containers", "volumes", "securityContext"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "x"},
        "spec": {f: predictor[f] for f in fields},
    }
    validate.validate(pod, KUBERNETES[-1], strict=True)
    assert set(predictor) - fields == {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget", "timeout"}


def test_grafana_finds_the_dashboard_where_compose_puts_it():
    yaml = pytest.importorskip("yaml", reason="pyyaml is not installed (extra deploy)")
    volumes = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["grafana"]["volumes"]
    target = next(volume.split(":")[1] for volume in volumes if "autogaze.json" in volume)
    provider = yaml.safe_load(
        (DEPLOY / "grafana" / "provisioning" / "dashboards" / "autogaze.yaml").read_text()
    )
    assert Path(target).parent == Path(provider["providers"][0]["options"]["path"])
