"""What the tests of the embedded server share."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from autogaze_backend.serving import TritonServerConfig

FREE_PORTS = tuple(f"--{name}-port=0" for name in ("http", "grpc", "metrics", "supervisor"))

_CONFIG = """
backend: "python"
input [{ name: "IN" data_type: TYPE_FP32 dims: [ -1 ] }]
output [{ name: "OUT" data_type: TYPE_FP32 dims: [ -1 ] }]
instance_group [{ kind: KIND_CPU }]
"""


def write_model(repository: Path, name: str, source: str, config: str = _CONFIG) -> Path:
    version = repository / name / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(textwrap.dedent(source))
    (repository / name / "config.pbtxt").write_text(config)
    return repository


def free_ports(repository: Path, **settings: object) -> TritonServerConfig:
    return TritonServerConfig(repository, http_port=0, grpc_port=0, metrics_port=0, **settings)


def double(url: str, values: list[float]) -> list[float]:
    """What the echo model at ``url`` answers."""
    with tritonclient.grpc.InferenceServerClient(url) as client:
        tensor = tritonclient.grpc.InferInput("IN", [len(values)], "FP32")
        tensor.set_data_from_numpy(np.asarray(values, np.float32))
        return client.infer("echo", [tensor]).as_numpy("OUT").tolist()


def server_processes(owner: int) -> dict[int, str]:
    """Living processes of the servers that process ``owner`` started: guard, tritonserver and stubs."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(f"autogaze-{owner}-" in argument for argument in arguments):
            found[int(folder.name)] = Path(arguments[0]).name
    return found


def wait_for(condition: Callable[[], bool], timeout: float = 30.0) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def run_command(name: str, *arguments: str, **settings: object) -> subprocess.Popen[str]:
    """``autogaze NAME ...`` as a process; only this command's module is loaded."""
    code = f"""
        import sys
        from autogaze_client import _cli
        every = _cli.entry_points
        _cli.entry_points = lambda group: [entry for entry in every(group=group) if entry.name == {name!r}]
        sys.exit(_cli.main(sys.argv[1:]))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), name, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **settings)


def serve(repository: Path, *arguments: str) -> subprocess.Popen[str]:
    """``autogaze serve`` on free ports."""
    return run_command("serve", "--model-repository", str(repository), *FREE_PORTS, *arguments)


def wait_until_ready(process: subprocess.Popen[str]) -> str:
    """Reads up to the line that names the URLs, and returns where gRPC listens."""
    assert process.stdout is not None
    for line in process.stdout:
        if match := re.search(r"ready: gRPC (\S+), HTTP \S+, metrics http://\S+/metrics", line):
            return match[1]
    pytest.fail(f"never ready: {process.communicate()[1]}")
