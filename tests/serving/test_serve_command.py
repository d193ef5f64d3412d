from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from autogaze_backend.serving import TritonInstallation
from serving.serving_helpers import double, run_command, server_processes, wait_for

pytestmark = pytest.mark.server

_FREE_PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    return folder


def _serve(repository: Path, *arguments: str) -> subprocess.Popen[str]:
    return run_command("serve", "--model-repository", str(repository), *_FREE_PORTS, *arguments)


def _wait_until_ready(process: subprocess.Popen[str]) -> str:
    """Reads up to the line that names the URLs, and returns where gRPC listens."""
    assert process.stdout is not None
    for line in process.stdout:
        if match := re.search(r"ready: gRPC (\S+), HTTP \S+, metrics http://\S+/metrics", line):
            return match[1]
    pytest.fail(f"never ready: {process.communicate()[1]}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_stop(
    installation: TritonInstallation, echo_repository: Path, bundle: Path, number: signal.Signals
) -> None:
    process = _serve(echo_repository, "--bundle", os.path.relpath(bundle))
    url = _wait_until_ready(process)
    assert process.stdout is not None
    assert f"autogaze gaze video.mp4 --url {url} " in process.stdout.readline()
    assert double(url, [1.0]) == [2.0]
    process.send_signal(number)
    said, log = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "stopping" in said
    assert f"echo: bundle={bundle}" in log
    assert "successfully unloaded 'echo'" in log
    assert "Traceback" not in log
    assert not server_processes(process.pid)


def test_a_second_signal_stops_at_once(installation: TritonInstallation, echo_repository: Path) -> None:
    process = _serve(echo_repository)
    _wait_until_ready(process)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert any("stopping" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert wait_for(lambda: not server_processes(process.pid))


def test_a_server_that_cannot_load_its_models_exits_with_the_reason(
    installation: TritonInstallation, broken_repository: Path
) -> None:
    process = _serve(broken_repository)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 1
    reason = log[log.index("autogaze serve:") :]
    assert "exit status 1" in reason
    assert "compute capability 8.9" in reason


def test_a_server_that_dies_later_ends_the_command(
    installation: TritonInstallation, echo_repository: Path
) -> None:
    process = _serve(echo_repository)
    _wait_until_ready(process)
    pid = next(pid for pid, name in server_processes(process.pid).items() if name == "tritonserver")
    os.kill(pid, signal.SIGKILL)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "tritonserver ended with exit status 137" in log


def test_a_folder_that_is_no_bundle_is_refused_before_anything_starts(
    echo_repository: Path, tmp_path: Path
) -> None:
    process = _serve(echo_repository, "--bundle", str(tmp_path))
    said, log = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said == ""
    assert re.fullmatch(r"autogaze serve: \S+ has no manifest\.json.*autogaze build.*\n", log)
