"""TLS and restricted protocols on a real tritonserver: who is let in, and who is not."""

from __future__ import annotations

import http.client
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from autogaze_backend.serving import RestrictedProtocols, ServerTLS, TritonServer, TritonServerConfig
from autogaze_client import (
    GazeClient,
    InvalidInputError,
    NotFoundError,
    ServerUnavailableError,
    Timeouts,
    TLSConfig,
)
from autogaze_client._cli import main
from goldens import clips
from serving.certificates import Authority, Issued
from serving.serving_helpers import free_ports, run_command
from tritonclient.utils import InferenceServerException

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
FRAMES = clips.synthetic_clip(1, 60, 80, 1)
KNOBS = {"gazing_ratio": 0.02}
SOON = Timeouts(request=20, control=3)


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours", "our authority")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "theirs", "another authority")


@pytest.fixture(scope="module")
def certificate(authority) -> Issued:
    return authority.issue("server")


@pytest.fixture(scope="module")
def guarded(bundle, authority, certificate) -> Iterator[TritonServer]:
    """The models behind mutual TLS, and repository and shared memory behind a header."""
    from autogaze_backend.serving import model_repository_path

    config = TritonServerConfig(
        model_repository_path(),
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        host="0.0.0.0",
        environment={"AUTOGAZE_BUNDLE": str(bundle("release"))},
        tls=ServerTLS(certificate.certificate, certificate.key, authority.certificate),
        restricted=(RestrictedProtocols.parse("model-repository,shared-memory:admin-key=s3cret"),),
    )
    with TritonServer(config, on_log=lambda line: None) as running:
        running.wait_until_ready(120)
        yield running


def answered(client: GazeClient) -> list[int]:
    return client.gaze(FRAMES, **KNOBS).tokens_per_frame.tolist()


@pytest.mark.server
@needs_openssl
def test_mutual_tls_serves_a_client_that_the_authority_signed(guarded, authority):
    mine = authority.issue("camera")
    tls = TLSConfig(authority.certificate, mine.key, mine.certificate)
    with GazeClient(guarded.url, tls=tls, timeouts=SOON) as client:
        assert client.is_ready()
        assert answered(client) == [5]


@pytest.mark.server
@needs_openssl
@pytest.mark.parametrize("who", ["no TLS", "no certificate", "a stranger's certificate", "trusts a stranger"])
def test_mutual_tls_refuses_others(who, guarded, authority, stranger):
    theirs, ours = stranger.issue("intruder"), authority.issue("guest")
    tls = {
        "no TLS": None,
        "no certificate": TLSConfig(authority.certificate),
        "a stranger's certificate": TLSConfig(authority.certificate, theirs.key, theirs.certificate),
        "trusts a stranger": TLSConfig(stranger.certificate, ours.key, ours.certificate),
    }[who]
    with GazeClient(guarded.url, tls=tls, timeouts=SOON) as client:
        assert not client.is_ready()
        with pytest.raises(ServerUnavailableError):
            answered(client)


@pytest.mark.server
@needs_openssl
def test_the_commands_of_clients_enter_with_their_options(guarded, authority, bunny, tmp_path, capsys):
    mine = authority.issue("desk")
    server = ["--url", guarded.url, "--tls-ca", str(authority.certificate)]
    certificate = ["--tls-cert", str(mine.certificate), "--tls-key", str(mine.key)]
    header = ["--header", "triton-grpc-protocol-admin-key=s3cret"]
    gaze = ["gaze", str(bunny), *server, "--frames", "2", "--gazing-ratio", "0.05", "--timeout", "20"]
    assert main([*gaze, *certificate, *header, "--out", str(tmp_path / "in")]) == 0
    assert json.loads((tmp_path / "in" / "gaze.json").read_text())["tokens_per_frame"] == [13, 13]
    capsys.readouterr()
    assert main([*gaze, "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("autogaze gaze: ")
    bench = [
        "--clients",
        "1",
        "--seconds",
        "0.2",
        "--size",
        "80x60",
        "--frames",
        "1",
        "--gazing-ratio",
        "0.02",
    ]
    assert main(["bench", *server, *certificate, *bench]) == 0


def http_status(server: TritonServer, path: str, headers: dict[str, str] | None = None) -> int:
    connection = http.client.HTTPConnection(server.http_url, timeout=5)
    connection.request("GET", path, headers=headers or {})
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.server
@needs_openssl
def test_under_tls_http_tells_this_machine_the_health_and_nothing_else(guarded):
    """Triton's HTTP has no TLS: open, it would be a way around it."""
    assert guarded.config.host == "0.0.0.0"
    listening = Path("/proc/net/tcp").read_text()
    port = f"{guarded.ports.http:04X}"
    assert f" 0100007F:{port} " in listening
    assert f" 00000000:{port} " not in listening
    assert http_status(guarded, "/v2/health/ready") == 200
    for path in ("/v2", "/v2/models/autogaze/config", "/v2/models/stats", "/v2/systemsharedmemory/status"):
        assert http_status(guarded, path) == 403, path
        assert http_status(guarded, path, {"autogaze-probe": "guess"}) == 403, path


@pytest.mark.server
@needs_openssl
def test_a_restricted_protocol_needs_its_header_beside_the_certificate(guarded, authority):
    mine = authority.issue("operator")
    options = triton.InferenceServerClient(
        guarded.url,
        ssl=True,
        root_certificates=str(authority.certificate),
        private_key=str(mine.key),
        certificate_chain=str(mine.certificate),
    )
    with options as raw:
        for headers in (None, {"triton-grpc-protocol-admin-key": "guess"}):
            with pytest.raises(InferenceServerException, match="restricted"):
                raw.get_model_repository_index(headers=headers)
            with pytest.raises(InferenceServerException, match="restricted"):
                raw.get_system_shared_memory_status(headers=headers)
        admin = {"triton-grpc-protocol-admin-key": "s3cret"}
        assert raw.get_model_repository_index(headers=admin).models
        raw.get_system_shared_memory_status(headers=admin)


@pytest.mark.server
def test_restricted_inference_is_for_clients_that_send_the_header(echo_repository, installation):
    """Readiness restricted too: the start still knows when the server is ready."""
    restriction = RestrictedProtocols(("inference", "health", "metadata"), "key", "value-1")
    config = free_ports(echo_repository, restricted=(restriction,))
    tensor = triton.InferInput("IN", [1], "FP32")
    tensor.set_data_from_numpy(np.ones(1, np.float32))
    with TritonServer(config, installation=installation, on_log=lambda line: None) as server:
        server.wait_until_ready(60)
        with triton.InferenceServerClient(server.url) as raw:
            answer = raw.infer("echo", [tensor], headers={restriction.grpc_header: "value-1"})
            assert answer.as_numpy("OUT").tolist() == [2.0]
            for headers in (None, {restriction.grpc_header: "value-2"}, {"key": "value-1"}):
                with pytest.raises(InferenceServerException, match="restricted"):
                    raw.infer("echo", [tensor], headers=headers)
        with GazeClient(
            server.url, headers={restriction.grpc_header: "value-1"}, model_name="echo"
        ) as client:
            assert client.is_ready()
        assert http_status(server, "/v2/health/ready") == 403
        assert http_status(server, "/v2/health/ready", {"key": "value-1"}) == 200


@pytest.mark.server
@needs_openssl
def test_the_command_serves_over_tls(echo_repository, installation, authority, certificate, tmp_path):
    process = run_command(
        *("serve", "--model-repository", str(echo_repository)),
        *("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"),
        *("--tls-cert", str(certificate.certificate), "--tls-key", str(certificate.key)),
        *("--restrict", "model-repository:admin-key=s3cret"),
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        ready = next((line for line in lines if "ready: gRPC " in line), None)
        assert ready is not None, process.communicate()[1]
        url = ready.split("gRPC ")[1].split(" ")[0]
        assert "with TLS" in ready
        with triton.InferenceServerClient(url, ssl=True, root_certificates=str(authority.certificate)) as raw:
            assert raw.is_server_ready(client_timeout=5)
            with pytest.raises(InferenceServerException, match="restricted"):
                raw.get_model_repository_index()
            assert raw.get_model_repository_index(headers={"triton-grpc-protocol-admin-key": "s3cret"}).models
        with triton.InferenceServerClient(url) as plain, pytest.raises(InferenceServerException):
            plain.is_server_ready(client_timeout=3)
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 0


BAD_OPTIONS = {
    "a key alone": (["--tls-key", "K"], "--tls-key alone is not TLS"),
    "an authority alone": (["--tls-ca", "K"], "--tls-ca alone is not TLS"),
    "no such file": (
        ["--tls-cert", "/nowhere.pem", "--tls-key", "/nowhere.pem"],
        "/nowhere.pem, which is no file",
    ),
    "no equals sign": (["--restrict", "inference:key"], "restriction is protocol"),
    "no protocol": (["--restrict", "inferences:key=1"], "inferences.*name one or more of health, metadata"),
    "twice": (["--restrict", "health:a=1", "--restrict", "health:b=2"], "health is in two restrictions"),
    "a header with capitals": (["--restrict", "health:Key=1"], "header is 'Key'; use lower-case"),
    "a value with a blank": (["--restrict", "health:key=a b"], "has blanks"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_wrong_options_are_refused_before_anything_starts(case, tmp_path):
    arguments, message = BAD_OPTIONS[case]
    (tmp_path / "models").mkdir()
    process = run_command("serve", "--model-repository", str(tmp_path / "models"), *arguments)
    said, log = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said == ""
    import re

    assert re.search(message, log), log
    assert "Traceback" not in log


def test_a_file_of_another_kind_is_refused(tmp_path):
    key, certificate, noise = tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "noise"
    key.write_text("-----BEGIN PRIVATE KEY-----\n")
    certificate.write_text("-----BEGIN CERTIFICATE-----\n")
    noise.write_bytes(b"\xff\x00")
    assert ServerTLS(certificate, key).flags()[0] == "--grpc-use-ssl=true"
    with pytest.raises(InvalidInputError, match=r"certificate .*key\.pem holds no CERTIFICATE"):
        ServerTLS(key, key)
    with pytest.raises(InvalidInputError, match=r"private_key .*cert\.pem holds no PRIVATE KEY"):
        ServerTLS(certificate, certificate)
    with pytest.raises(InvalidInputError, match="cannot be read as PEM"):
        ServerTLS(certificate, key, noise)
    with pytest.raises(NotFoundError, match=r"client_authority is .*absent"):
        ServerTLS(certificate, key, tmp_path / "absent")


def test_flags_of_tls_and_restrictions_are_the_configurations_own(tmp_path):
    for flag in (
        "--grpc-use-ssl=true",
        "--grpc-restricted-protocol=health:a=b",
        "--http-restricted-api=health:a=b",
    ):
        with pytest.raises(InvalidInputError, match="which TritonServerConfig"):
            free_ports(tmp_path, extra_args=(flag,))
