"""NVIDIA's Multi-Process Service for a server, with a recorder in its place: it needs a GPU."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from autogaze_backend.serving import MultiProcessService, ServerStartError, TritonInstallation
from serving.serving_helpers import double, serve, server_processes, wait_until_ready

RECORDER = """#!{python}
import os, sys
said = "" if "-d" in sys.argv else sys.stdin.read().strip()
with open({log!r}, "a") as log:
    print(*sys.argv[1:], said, os.environ["CUDA_MPS_PIPE_DIRECTORY"], file=log)
if "-d" in sys.argv and {status}:
    with open(os.environ["CUDA_MPS_LOG_DIRECTORY"] + "/control.log", "w") as log:
        print("another service has the GPU", file=log)
    sys.exit({status})
"""


def install(folder: Path, monkeypatch, status: int = 0) -> Path:
    """Puts a recorder on PATH; returns what it writes."""
    log, binary = folder / "log", folder / "bin" / "nvidia-cuda-mps-control"
    binary.parent.mkdir()
    binary.write_text(RECORDER.format(python=sys.executable, log=str(log), status=status))
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(binary.parent), prepend=":")
    return log


def test_it_starts_before_and_ends_after(tmp_path, monkeypatch):
    log = install(tmp_path, monkeypatch)
    with MultiProcessService() as service:
        folder = service.environment["CUDA_MPS_PIPE_DIRECTORY"]
        assert Path(folder).is_dir()
        assert log.read_text().splitlines() == [f"-d  {folder}"]
    assert log.read_text().splitlines()[1:] == [f"quit {folder}"]
    assert not Path(folder).exists()
    assert service.environment == {}


def test_why_it_does_not_start_is_told(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, status=3)
    with (
        pytest.raises(ServerStartError, match=r"(?s)-d.* status 3.*another service has the GPU"),
        MultiProcessService(),
    ):
        pass


def test_a_machine_without_it_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(ServerStartError, match=r"nvidia-cuda-mps-control.*not on PATH.*without --mps"),
        MultiProcessService(),
    ):
        pass


@pytest.mark.server
def test_a_server_and_its_processes_use_it(
    tmp_path, monkeypatch, installation: TritonInstallation, echo_repository: Path, blank_bundle: Path
):
    log = install(tmp_path, monkeypatch)
    process = serve(echo_repository, "--bundle", str(blank_bundle), "--mps")
    url = wait_until_ready(process)
    (started,) = log.read_text().splitlines()
    variable = f"CUDA_MPS_PIPE_DIRECTORY={started.split()[-1]}".encode()
    stubs = [
        pid for pid in server_processes(process.pid) if b"stub" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert stubs
    assert all(variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") for pid in stubs)
    assert double(url, [1.0]) == [2.0]
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert log.read_text().splitlines()[1:] == [f"quit {started.split()[-1]}"]
