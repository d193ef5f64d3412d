"""The container's entrypoint, dry: another user, a read-only root, and the embedded server in the container's place."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from autogaze_backend.serving import (
    TritonInstallation,
    TritonServerConfig,
    ensure_installation,
    model_repository_path,
    require_supported_host,
)
from autogaze_backend.serving.command import server_command, server_environment
from autogaze_backend.serving.ports import ServerPorts, choose_ports
from autogaze_client import GazeClient

from deploy.deploy_helpers import DEPLOY, takes_longer

ENTRYPOINT = str(DEPLOY / "entrypoint.sh")
BINARIES = str(Path(sys.executable).parent)

# What a container with read_only, tmpfs, a volume, user 1000 and no capabilities has; /srv holds the server.
CONTAINER = """
mount --make-rprivate / && mount --bind "$HOST_SERVER" /srv &&
case "$HOST_PYTHON" in /root/*)  # where the other user could not go
    mount --bind "$HOST_PYTHON" /media && mount -t tmpfs -o mode=755 tmpfs /root &&
    mkdir -p "$HOST_PYTHON" && mount --bind /media "$HOST_PYTHON" ;;
esac &&
mount --bind "$HOST_VOLUME" /mnt && mount -o remount,bind,ro / && mount -t tmpfs -o mode=1777 tmpfs /tmp && cd /tmp &&
exec setpriv --reuid=1000 --regid=1000 --clear-groups --no-new-privs --bounding-set=-all "$0" "$@"
"""
OWNED = ("--model-repository", "--exit-timeout-secs")


@pytest.fixture(scope="module")
def installation() -> TritonInstallation:
    return ensure_installation()


def host(volume: Path, server: Path) -> dict[str, str]:
    """Where the container's folders lie outside of it."""
    return {"HOST_VOLUME": str(volume), "HOST_SERVER": str(server), "HOST_PYTHON": sys.base_prefix}


@pytest.fixture
def container(tmp_path_factory) -> list[str]:
    """The command that runs another one like a container; skips where mounts or the other user are not to be had."""
    command = ["unshare", "--mount", "sh", "-c", CONTAINER]
    empty = tmp_path_factory.mktemp("empty")
    # Through a shell: what setpriv itself starts is still found with the old user's rights.
    check = f"exec {sys.executable} -c 'import autogaze_backend, autogaze_export, onnxruntime'"
    environment = {**os.environ, **host(empty, empty)}
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.skip("unshare and setpriv (util-linux) are not installed")
    probe = subprocess.run(
        [*command, "sh", "-c", check], capture_output=True, text=True, env=environment, check=False
    )
    if probe.returncode:
        pytest.skip(f"no read-only root and other user can be had here: {probe.stderr.strip()[-200:]}")
    return command


@contextmanager
def started(
    command: list[str], installation: TritonInstallation, ports: ServerPorts, volume: Path, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    config = TritonServerConfig(model_repository_path(), ports.http, ports.grpc, ports.metrics)
    flags = server_command(config, installation, ports, f"autogaze-{os.getpid()}-entrypoint")
    root = str(installation.root)
    arguments = [flag.replace(root, "/srv") for flag in flags[1:] if not flag.startswith(OWNED)]
    environment = server_environment(config, installation, require_supported_host())
    environment = {name: value.replace(root, "/srv") for name, value in environment.items()} | {
        **host(volume, installation.root),
        "AUTOGAZE_VOLUME": "/mnt",
        "AUTOGAZE_CHECKPOINT": "open",
        "TRITONSERVER": str(installation.binary).replace(root, "/srv"),
    }
    for name in ("AUTOGAZE_BUNDLE", "AUTOGAZE_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, ENTRYPOINT, *arguments], stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@takes_longer
@pytest.mark.server
def test_a_first_start_builds_and_a_second_finds_it(container, installation, tmp_path):
    volume = tmp_path / "volume"
    volume.mkdir()
    os.chown(volume, 1000, 1000)
    ports = choose_ports(TritonServerConfig(model_repository_path(), 0, 0, 0))
    tokens, logs = [], []
    for start in range(2):
        log = tmp_path / f"log{start}"
        with started(container, installation, ports, volume, log) as process:
            with GazeClient(f"127.0.0.1:{ports.grpc}") as client:
                deadline = time.monotonic() + 120
                while not client.is_ready():
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.1)
                result = client.gaze(np.zeros((1, 32, 32, 3), np.uint8), gazing_ratio=0.1)
                tokens.append(result.generated.gazing_pos.tolist())
            # Docker and Kubernetes say this to process 1, which must be the server.
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0, log.read_text()
        logs.append(log.read_text())
    assert "autogaze: building open for onnxruntime (cpu) in /mnt/bundles/" in logs[0]
    assert "building" not in logs[1]
    assert tokens[0] == tokens[1]
    (bundle,) = [path for path in (volume / "bundles").iterdir() if path.is_dir()]
    assert (bundle / "manifest.json").is_file()
    assert bundle.stat().st_uid == 1000


def run(tmp_path: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """The entrypoint with a server that only prints its arguments."""
    fake = tmp_path / "tritonserver"
    fake.write_text('#!/bin/sh\necho "SERVER $*"\necho "BUNDLE ${AUTOGAZE_BUNDLE:-}"\n')
    fake.chmod(0o755)
    settings = {
        "PATH": f"{BINARIES}:{os.environ['PATH']}",
        "TRITONSERVER": str(fake),
        "AUTOGAZE_VOLUME": str(tmp_path / "volume"),
        **environment,
    }
    return subprocess.run(
        ["sh", ENTRYPOINT, "--log-verbose=1"],
        capture_output=True,
        text=True,
        env=settings,
        timeout=120,
        check=False,
    )


def test_a_named_bundle_is_served_as_it_is(tmp_path):
    done = run(tmp_path, {"AUTOGAZE_BUNDLE": "/somewhere/bundle", "AUTOGAZE_EXIT_SECONDS": "7"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"SERVER --model-repository={model_repository_path()} --exit-timeout-secs=7 --log-verbose=1",
        "BUNDLE /somewhere/bundle",
    ]
    assert not (tmp_path / "volume").exists()


def test_a_repository_of_several_versions_brings_its_bundles(tmp_path):
    done = run(tmp_path, {"AUTOGAZE_REPOSITORY": "/models"})
    assert done.stdout.splitlines() == [
        "SERVER --model-repository=/models --exit-timeout-secs=30 --log-verbose=1",
        "BUNDLE ",
    ]


def test_what_a_bundle_is_built_from_decides_where_it_lies(tmp_path, seeded_checkpoint):
    places = []
    for checkpoint in (seeded_checkpoint("release"), seeded_checkpoint("single")):
        done = run(tmp_path, {"AUTOGAZE_CHECKPOINT": str(checkpoint)})
        assert done.returncode == 0, done.stderr
        places.append(done.stdout.splitlines()[1].removeprefix("BUNDLE "))
    again = run(tmp_path, {"AUTOGAZE_CHECKPOINT": str(seeded_checkpoint("release"))})
    assert "building" not in again.stderr
    assert again.stdout.splitlines()[1] == f"BUNDLE {places[0]}"
    assert places[0] != places[1]


def test_a_build_that_fails_leaves_nothing_to_serve(tmp_path):
    done = run(tmp_path, {"AUTOGAZE_CHECKPOINT": str(tmp_path / "missing")})
    assert done.returncode == 1
    assert "missing" in done.stderr
    assert "could not be built" in done.stderr
    assert "SERVER" not in done.stdout
    assert [path.name for path in (tmp_path / "volume" / "bundles").iterdir()] == [".lock"]


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="this machine has a GPU")
def test_an_engine_for_a_gpu_needs_one(tmp_path):
    done = run(tmp_path, {"AUTOGAZE_ENGINE": "tensorrt"})
    assert done.returncode == 1
    assert "needs a GPU" in done.stderr


GPU = "NVIDIA L4, 8.9, 580.10"
# Builds what the real command would, as far as the entrypoint looks.
BUILDER = """#!/bin/sh
echo "BUILD $*" >&2
case " $* " in *" $REFUSED "*) echo "no kernel" >&2; exit 1 ;; esac
mkdir -p "$3" && echo "{}" > "$3/manifest.json"
"""


def on_gpu(
    tmp_path: Path, *, version: str = "10.15.1", module: str = "tensorrt", **more: str
) -> dict[str, str]:
    """The environment of a machine with a GPU and a TensorRT, and of a builder that runs without either."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    for name, text in {"nvidia-smi": f"#!/bin/sh\necho '{GPU}'\n", "autogaze": BUILDER}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tools / f"{module}.py").write_text(f"__version__ = {version!r}\n")
    return {
        "PATH": f"{tools}:{BINARIES}:{os.environ['PATH']}",
        "PYTHONPATH": str(tools),
        "REFUSED": "-",
        **more,
    }


def test_on_a_gpu_with_tensorrt_plans_are_built_once_for_gpu_and_version(tmp_path):
    environment = on_gpu(tmp_path)
    first = run(tmp_path, environment)
    assert first.returncode == 0, first.stderr
    assert "--engine tensorrt\n" in first.stderr
    assert f"for tensorrt ({GPU}\n10.15.1) in" in first.stderr
    again = run(tmp_path, environment)
    assert "BUILD" not in again.stderr
    assert again.stdout == first.stdout
    newer = run(tmp_path, on_gpu(tmp_path, version="10.16.0"))
    assert "BUILD" in newer.stderr
    assert newer.stdout.splitlines()[1] != first.stdout.splitlines()[1]


def test_with_tensorrt_rtx_alone_its_plans_are_built(tmp_path):
    done = run(tmp_path, on_gpu(tmp_path, version="1.7.1", module="tensorrt_rtx"))
    assert "--engine tensorrt-rtx\n" in done.stderr


def test_where_plans_cannot_be_built_auto_serves_without_and_says_so(tmp_path):
    done = run(tmp_path, on_gpu(tmp_path, REFUSED="tensorrt"))
    assert done.returncode == 0, done.stderr
    assert "no plans for tensorrt could be built; the reason is above; serving without them" in done.stderr
    assert "no kernel" in done.stderr
    assert "--engine onnxruntime\n" in done.stderr
    assert done.stdout.startswith("SERVER ")
    # An engine that was asked for is not replaced.
    refused = run(tmp_path, on_gpu(tmp_path, REFUSED="tensorrt", AUTOGAZE_ENGINE="tensorrt"))
    assert refused.returncode == 1
    assert "could not be built" in refused.stderr
    assert "SERVER" not in refused.stdout


@pytest.mark.parametrize("status", [0, 1])
def test_the_multi_process_service_starts_before_the_server_where_it_is_wanted(tmp_path, status):
    """A recorder in its place, since it needs a GPU."""
    control, pipes = tmp_path / "tools" / "nvidia-cuda-mps-control", tmp_path / "pipes"
    control.parent.mkdir()
    control.write_text(f'#!/bin/sh\necho "MPS $* in $CUDA_MPS_PIPE_DIRECTORY"\nexit {status}\n')
    control.chmod(0o755)
    environment = {
        "AUTOGAZE_BUNDLE": "/somewhere/bundle",
        "PATH": f"{control.parent}:{BINARIES}:{os.environ['PATH']}",
        "CUDA_MPS_PIPE_DIRECTORY": str(pipes),
        "CUDA_MPS_LOG_DIRECTORY": str(pipes),
    }
    assert "MPS" not in run(tmp_path, environment).stdout
    done = run(tmp_path, {**environment, "AUTOGAZE_MPS": "1"})
    lines = done.stdout.splitlines()
    assert lines[0] == f"MPS -d in {pipes}"
    assert pipes.is_dir()
    assert done.returncode == status
    assert bool(lines[1:]) == (status == 0)
    assert ("nvidia-cuda-mps-control does not start" in done.stderr) == bool(status)


def test_another_word_for_the_multi_process_service_is_refused(tmp_path):
    done = run(tmp_path, {"AUTOGAZE_BUNDLE": "/somewhere/bundle", "AUTOGAZE_MPS": "true"})
    assert done.returncode == 1
    assert "AUTOGAZE_MPS is 'true'; it must be 0 or 1" in done.stderr
    assert "SERVER" not in done.stdout


def test_without_a_server_it_says_so(tmp_path):
    done = run(tmp_path, {"TRITONSERVER": str(tmp_path / "nothing")})
    assert (done.returncode, "set TRITONSERVER" in done.stderr) == (1, True)
