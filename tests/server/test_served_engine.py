"""The engine of served models: chosen once at the start, refused before any request."""

from __future__ import annotations

import pytest
from autogaze_backend.plan_selection import Machine
from autogaze_backend.serving import TritonServer, TritonServerConfig, model_repository_path
from autogaze_backend.serving.errors import ServerStartError
from autogaze_client import GazeClient
from goldens import clips
from serving.serving_helpers import run_command

pytestmark = pytest.mark.server


def config(bundle, **environment: str) -> TritonServerConfig:
    variables = {"AUTOGAZE_BUNDLE": str(bundle), **environment}
    return TritonServerConfig(model_repository_path(), 0, 0, 0, environment=variables)


def test_what_auto_passes_over_is_in_the_log(bundle):
    log: list[str] = []
    with TritonServer(config(bundle("release")), on_log=log.append) as server:
        server.wait_until_ready(120)
        with GazeClient(server.url) as client:
            client.gaze(clips.synthetic_clip(1, 90, 160, 5), gazing_ratio=0.1)
    passed_over = [line for line in log if "engine tensorrt passed over: " in line]
    assert len(passed_over) == 2, "once in autogaze_generate, once in autogaze_stream"
    assert "holds no plans for tensorrt; build them on the machine that serves" in passed_over[0]
    assert len([line for line in log if "(exact) on " in line and "engine " in line]) == 2


def test_an_engine_that_does_not_fit_is_refused_at_the_start_with_its_remedy(bundle):
    server = TritonServer(config(bundle("release"), AUTOGAZE_ENGINE="tensorrt"))
    with server, pytest.raises(ServerStartError) as raised:
        server.wait_until_ready(120)
    assert "holds no plans for tensorrt" in str(raised.value)
    assert "autogaze build CHECKPOINT" in str(raised.value)


@pytest.mark.skipif(bool(Machine.probe().gpus), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_refused_at_the_start(bundle):
    server = TritonServer(config(bundle("release"), AUTOGAZE_DEVICE="cuda:7"))
    with server, pytest.raises(ServerStartError, match=r"no engine runs .* on device 'cuda:7'"):
        server.wait_until_ready(120)


def test_autogaze_serve_takes_an_engine(bundle):
    ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")
    process = run_command("serve", "--bundle", str(bundle("release")), "--engine", "tensorrt", *ports)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "holds no plans for tensorrt" in log[log.index("autogaze serve:") :]
    process = run_command("serve", "--bundle", str(bundle("release")), "--engine", "onnx", *ports)
    _, log = process.communicate(timeout=120)
    assert (process.returncode, "engine is 'onnx'; known engines are tensorrt" in log) == (1, True)
