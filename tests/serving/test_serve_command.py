from __future__ import annotations

import json
import os
import re
import signal
import urllib.request
from pathlib import Path

import pytest
from autogaze_backend.serving import TritonInstallation
from serving.serving_helpers import (
    FREE_PORTS,
    double,
    run_command,
    serve,
    server_processes,
    wait_for,
    wait_until_ready,
    write_model,
)

pytestmark = pytest.mark.server


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_stop(
    installation: TritonInstallation, echo_repository: Path, blank_bundle: Path, number: signal.Signals
) -> None:
    process = serve(echo_repository, "--bundle", os.path.relpath(blank_bundle))
    url = wait_until_ready(process)
    assert process.stdout is not None
    assert f"autogaze gaze video.mp4 --url {url} " in process.stdout.readline()
    page = process.stdout.readline().split()[-1]
    with urllib.request.urlopen(page) as answer:
        assert json.load(answer)["state"] == "ready"
    assert double(url, [1.0]) == [2.0]
    process.send_signal(number)
    said, log = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "stopping" in said
    assert f"echo: bundle={blank_bundle}" in log
    assert "successfully unloaded 'echo'" in log
    assert "Traceback" not in log
    assert not server_processes(process.pid)


def test_a_second_signal_stops_at_once(installation: TritonInstallation, echo_repository: Path) -> None:
    process = serve(echo_repository)
    wait_until_ready(process)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert any("stopping" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert wait_for(lambda: not server_processes(process.pid))


@pytest.mark.parametrize("what", ["clip", "stream"])
def test_a_number_of_instances_that_is_none_is_refused(
    installation: TritonInstallation, echo_repository: Path, what: str
) -> None:
    process = serve(echo_repository, f"--{what}-instances", "none")
    _, log = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"AUTOGAZE_{what.upper()}_INSTANCES is 'none'; it must be a whole number of at least 1" in log
    assert "Traceback" not in log


def test_a_server_that_cannot_load_its_models_exits_with_the_reason(
    installation: TritonInstallation, broken_repository: Path
) -> None:
    process = serve(broken_repository)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 1
    reason = log[log.index("autogaze serve:") :]
    assert "exit status 1" in reason
    assert "compute capability 8.9" in reason


def _kill(owner: int, name: str) -> None:
    os.kill(next(pid for pid, found in server_processes(owner).items() if found == name), signal.SIGKILL)


def test_without_restarts_a_server_that_dies_ends_the_command(
    installation: TritonInstallation, echo_repository: Path
) -> None:
    process = serve(echo_repository, "--max-restarts", "0")
    wait_until_ready(process)
    _kill(process.pid, "tritonserver")
    _, log = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "tritonserver ended with exit status 137" in log
    assert "it is not restarted (max_restarts is 0)" in log
    assert "Traceback" not in log


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_killed_stub_is_replaced_and_the_log_says_so(
    installation: TritonInstallation, echo_repository: Path, log_format: str
) -> None:
    process = run_command(
        "serve",
        *("--model-repository", str(echo_repository), *FREE_PORTS),
        env={**os.environ, "AUTOGAZE_LOG_FORMAT": log_format, "AUTOGAZE_BUNDLE": ""},
    )
    url = wait_until_ready(process)
    assert process.stdout is not None
    _kill(process.pid, "triton_python_backend_stub")
    assert any("restarting: the process" in line for line in process.stdout)
    assert any("ready again: after" in line for line in process.stdout)
    assert double(url, [1.0]) == [2.0]
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 0
    if log_format == "text":
        assert "WARNING autogaze.supervisor: restarting the server: the process" in log
    else:
        lines = [json.loads(line) for line in log.splitlines() if line.strip()]
        said = [line["message"] for line in lines if line["logger"] == "autogaze.supervisor"]
        assert [line.split(":")[0] for line in said][:1] == ["restarting the server"]
        assert "serving again" in said[1]


def test_a_signal_during_a_restart_ends_the_command_cleanly(
    installation: TritonInstallation, tmp_path: Path
) -> None:
    source = """
        import pathlib, time
        class TritonPythonModel:
            def initialize(self, args):
                again = pathlib.Path(args["model_repository"]) / "again"
                if again.exists():
                    again.unlink()
                    time.sleep(600)
                again.touch()
            def execute(self, requests):
                return []
    """
    process = serve(write_model(tmp_path, "echo", source))
    wait_until_ready(process)
    _kill(process.pid, "triton_python_backend_stub")
    assert wait_for(lambda: not (tmp_path / "echo" / "again").exists(), 60)
    process.send_signal(signal.SIGTERM)
    said, log = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "stopping" in said
    assert "Traceback" not in log
    assert wait_for(lambda: not server_processes(process.pid))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--supervisor-port", "none"), "'none' is neither a port nor 'off'"),
        (("--max-restarts", "-1"), "max_restarts is -1"),
        (("--canary-seconds", "0"), "canary_interval is 0"),
    ],
)
def test_bad_supervision_options_are_refused_before_anything_starts(
    echo_repository: Path, option: tuple[str, str], message: str
) -> None:
    process = serve(echo_repository, *option)
    said, log = process.communicate(timeout=60)
    assert process.returncode != 0
    assert said == ""
    assert message in log
    assert "Traceback" not in log


def test_the_page_can_be_off(installation: TritonInstallation, echo_repository: Path) -> None:
    process = serve(echo_repository, "--supervisor-port", "off")
    wait_until_ready(process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "readiness" not in said


def test_a_folder_that_is_no_bundle_is_refused_before_anything_starts(
    echo_repository: Path, tmp_path: Path
) -> None:
    process = serve(echo_repository, "--bundle", str(tmp_path))
    said, log = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said == ""
    assert re.fullmatch(r"autogaze serve: \S+ has no manifest\.json.*autogaze build.*\n", log)
