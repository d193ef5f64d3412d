"""Supervision of servers that answer not everyone: the canary is let in, and still tells a fault."""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from autogaze_backend.serving import (
    RestrictedProtocols,
    ServerTLS,
    SupervisedServer,
    SupervisionConfig,
    SupervisionState,
    TritonServer,
    model_repository_path,
)
from autogaze_backend.serving.connections import (
    CallFailedError,
    GrpcConnection,
    HttpConnection,
    Inference,
    ServerConnection,
)
from autogaze_client import GazeClient, ServerUnavailableError, TLSConfig
from faults.fault_helpers import KNOBS, LONG, clip, eventually, metric, signal_stub
from serving.certificates import Authority
from serving.serving_helpers import free_ports

MODELS = ("autogaze_generate", "autogaze_stream")
PROTOCOLS = ("health", "metadata", "inference", "model-repository", "statistics")
RESTRICTION = RestrictedProtocols(PROTOCOLS, "key", "value-1")


class Secured:
    """A way to close a server, and clients that may enter."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.settings: dict[str, Any] = {}
        self.client: dict[str, Any] = {}
        self.settings["restricted"] = (RESTRICTION,)
        self.client["headers"] = {RESTRICTION.grpc_header: RESTRICTION.value}
        if kind != "header":
            authority = Authority(folder / "tls", "our authority")
            server, camera = authority.issue("server"), authority.issue("camera")
            self.settings["tls"] = ServerTLS(server.certificate, server.key, authority.certificate)
            self.client["tls"] = TLSConfig(authority.certificate, camera.key, camera.certificate)


def answered(server: TritonServer, model: str) -> float:
    return metric(server, "nv_inference_request_success", model=model)


def wait_for_canaries(server: TritonServer, times: int) -> None:
    before = {model: answered(server, model) for model in MODELS}
    for model in MODELS:
        eventually(lambda model=model: answered(server, model) >= before[model] + times, f"asked {model}")


@pytest.mark.server
@pytest.mark.parametrize("kind", ["header", "TLS and header"])
def test_a_closed_server_is_watched_like_an_open_one(bundle, tmp_path, kind):
    if kind != "header" and shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates")
    secured, log, changes = Secured(kind, tmp_path), [], []
    environment = {"AUTOGAZE_BUNDLE": str(bundle("release"))}
    config = free_ports(
        model_repository_path(), environment=environment, exit_timeout=60.0, **secured.settings
    )
    supervision = SupervisionConfig(canary_interval=0.2, canary_timeout=30.0)
    with SupervisedServer(config, supervision, on_log=log.append, on_change=changes.append) as server:
        server.wait_until_ready(LONG)
        with GazeClient(server.url) as stranger, pytest.raises(ServerUnavailableError):
            stranger.gaze(clip(1), **KNOBS, timeout=5)
        wait_for_canaries(server.server, 4)
        assert [status.state for status in changes] == [SupervisionState.READY]

        signal_stub(server.server, "autogaze_stream", signal.SIGSTOP)
        eventually(lambda: server.status.restarts == 1 and server.status.is_ready, "a restart after canaries")
        failing, restarting = changes[1:3]
        assert failing.state is SupervisionState.FAILING
        assert "the canary of autogaze_stream version 1 failed" in failing.reason
        assert restarting.reason.startswith(
            "3 canaries in a row failed, the last: the canary of autogaze_str"
        )

        signal_stub(server.server, "autogaze_generate", signal.SIGKILL)
        eventually(lambda: server.status.restarts == 2 and server.status.is_ready, "a restart after a death")
        wait_for_canaries(server.server, 2)
        with GazeClient(server.url, **secured.client) as client:
            assert client.gaze(clip(1), **KNOBS).tokens_per_frame.sum() > 0
            # And a stop knows streams that nobody uses.
            client.stream(**KNOBS).push(clip(1)[0])
            server.stop()
    assert any("'autogaze_stream' (version 1) has 1 in-flight" in line for line in log)
    assert not any("Timeout 30:" in line or "Exit timeout expired" in line for line in log)


# --- both ways of asking ---------------------------------------------------------------------------------


@pytest.fixture(params=["gRPC", "HTTP"])
def connect(request) -> Callable[[str, str], ServerConnection]:
    """Connects to one of two addresses."""

    def connected(grpc_url: str, http_url: str) -> ServerConnection:
        made: ServerConnection = (
            GrpcConnection(grpc_url, {}) if request.param == "gRPC" else HttpConnection(http_url, {})
        )
        request.addfinalizer(made.close)
        return made

    return connected


@pytest.mark.server
def test_both_ways_of_asking_tell_the_same(echo_server, connect):
    connection = connect(echo_server.url, echo_server.http_url)
    assert connection.is_ready()
    assert connection.server_name() == echo_server.name
    assert connection.loaded_models() == {("echo", "1")}
    values = {"IN": np.array([1.0, np.nan], np.float32)}
    before = answered(echo_server, "echo")
    connection.infer(Inference("echo", "1", values, {"priority": 0}), timeout=30)
    eventually(lambda: answered(echo_server, "echo") == before + 1, "counted")
    for model, version, tensors, complaint in (
        ("echo", "1", {"IN": np.zeros(2, np.int32)}, "INT32.*FP32|FP32.*INT32"),
        ("echo", "2", values, "not found|unknown"),
        ("other", "1", values, "unknown model"),
    ):
        with pytest.raises(CallFailedError, match=complaint) as caught:
            connection.infer(Inference(model, version, tensors), timeout=30)
        assert not caught.value.is_late


def test_no_answer_is_told_from_no_server(connect):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"127.0.0.1:{silent.getsockname()[1]}"
        connection = connect(url, url)
        inference = Inference("echo", "1", {"IN": np.zeros(1, np.float32)})
        with pytest.raises(CallFailedError) as caught:
            connection.infer(inference, timeout=0.5)
        # gRPC gives the connection up by itself before.
        assert caught.value.is_late is isinstance(connection, HttpConnection)
        assert not connection.is_ready()
    gone = connect(url, url)
    with pytest.raises(CallFailedError) as caught:
        gone.server_name()
    assert not caught.value.is_late
